"""One traversal of a model's layers, and the visitors that give it a meaning.

`traverse` knows the order, the keywords, the mode, the keys and the errors. A visitor says what
happens at each layer: run it, build it, run it on plain dicts, describe it.
"""

from seqbridge._passes.build import Build as Build
from seqbridge._passes.build import FirstRun as FirstRun
from seqbridge._passes.build import NeedsInputsError as NeedsInputsError
from seqbridge._passes.build import find_initial as find_initial
from seqbridge._passes.build import first_call as first_call
from seqbridge._passes.build import install as install
from seqbridge._passes.build import parameters_depend_on_inputs as parameters_depend_on_inputs
from seqbridge._passes.call import apply as apply
from seqbridge._passes.call import key_for as key_for
from seqbridge._passes.call import traced as traced
from seqbridge._passes.forward import Run as Run
from seqbridge._passes.forward import check_keywords as check_keywords
from seqbridge._passes.forward import run_through as run_through
from seqbridge._passes.forward import traverse as traverse
from seqbridge._passes.outputs import Outputs as Outputs
from seqbridge._passes.outputs import Recorder as Recorder
from seqbridge._passes.pure_form import FLAT as FLAT
from seqbridge._passes.pure_form import Form as Form
from seqbridge._passes.pure_form import Naming as Naming
from seqbridge._passes.pure_form import Parts as Parts
from seqbridge._passes.pure_form import built_layouts as built_layouts
from seqbridge._passes.pure_form import check_sizes as check_sizes
from seqbridge._passes.pure_form import layouts_of as layouts_of
from seqbridge._passes.pure_form import lazy_key as lazy_key
from seqbridge._passes.rows import Row as Row
from seqbridge._passes.specs import are_known as are_known
from seqbridge._passes.specs import check_arrays as check_arrays
from seqbridge._passes.specs import check_inputs as check_inputs
from seqbridge._passes.specs import explained as explained
from seqbridge._passes.specs import keyword_specs as keyword_specs
from seqbridge._passes.specs import specs as specs
from seqbridge._passes.specs import starts_without_inputs as starts_without_inputs
from seqbridge._passes.summary import Summary as Summary
from seqbridge._passes.summary import summarize as summarize
