"""JAX' transforms for functions of objects that hold variables: `jit`, `grad`, `vmap`, `scan`.

They partition the arguments into holders, static values and arrays, call the function of JAX on
pure values, and commit what changed. They know variables and their holders, and no layer.
"""

from seqbridge._transforms.control_flow import cond as cond
from seqbridge._transforms.control_flow import fori_loop as fori_loop
from seqbridge._transforms.control_flow import scan as scan
from seqbridge._transforms.control_flow import switch as switch
from seqbridge._transforms.control_flow import while_loop as while_loop
from seqbridge._transforms.grad import grad as grad
from seqbridge._transforms.grad import value_and_grad as value_and_grad
from seqbridge._transforms.jit import jit as jit
from seqbridge._transforms.mapped import eval_shape as eval_shape
from seqbridge._transforms.mapped import pure_call as pure_call
from seqbridge._transforms.mapped import vmap as vmap
from seqbridge._transforms.optimizer import Optimizer as Optimizer
from seqbridge._transforms.partition import combine as combine
from seqbridge._transforms.partition import holders_of as holders_of
from seqbridge._transforms.partition import partition as partition
from seqbridge._transforms.program import Jitted as Jitted
