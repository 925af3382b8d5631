"""Variables: boxes that hold arrays, and what keeps them consistent.

A variable's array is a slot of a `Buffer`, which is what programs pass. A transform never writes
tracers into it: it opens a `Frame`, which holds the values that its function sees. `commit` writes
several variables at once, under their locks. Keys of random numbers and the version of all
structures belong here, too.
"""

from seqbridge._state.buffers import Buffer as Buffer
from seqbridge._state.buffers import Buffers as Buffers
from seqbridge._state.buffers import lost as lost
from seqbridge._state.buffers import store as store
from seqbridge._state.dtypes import cast as cast
from seqbridge._state.dtypes import category as category
from seqbridge._state.dtypes import owned as owned
from seqbridge._state.dtypes import strong as strong
from seqbridge._state.frames import Frame as Frame
from seqbridge._state.frames import Tracer as Tracer
from seqbridge._state.frames import commit as commit
from seqbridge._state.frames import has_tracer as has_tracer
from seqbridge._state.frames import in_frame as in_frame
from seqbridge._state.frames import known_variables as known_variables
from seqbridge._state.frames import read as read
from seqbridge._state.frames import refuse_in_trace as refuse_in_trace
from seqbridge._state.frames import tracing as tracing
from seqbridge._state.interrupts import call_and_keep as call_and_keep
from seqbridge._state.interrupts import finish_on_interrupt as finish_on_interrupt
from seqbridge._state.interrupts import writer as writer
from seqbridge._state.locks import Locks as Locks
from seqbridge._state.locks import locked as locked
from seqbridge._state.operators import Operators as Operators
from seqbridge._state.packing import pack as pack
from seqbridge._state.prng import Keys as Keys
from seqbridge._state.prng import as_key as as_key
from seqbridge._state.prng import fold_in as fold_in
from seqbridge._state.prng import same_key as same_key
from seqbridge._state.prng import split as split
from seqbridge._state.prng import stream as stream
from seqbridge._state.treescope import Content as Content
from seqbridge._state.treescope import PlainText as PlainText
from seqbridge._state.variable import CacheKey as CacheKey
from seqbridge._state.variable import Stateful as Stateful
from seqbridge._state.variable import Variable as Variable
from seqbridge._state.variable import distinct as distinct
from seqbridge._state.version import cached_by_version as cached_by_version
from seqbridge._state.version import serial as serial
from seqbridge._state.version import version as version
