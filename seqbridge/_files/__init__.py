"""Formats of weight files: safetensors, npz, and the readers of other libraries' files.

This folder knows bytes, names and arrays, but neither models nor variables.
"""

from seqbridge._files.readers import format_of as format_of
from seqbridge._files.readers import native_tree as native_tree
from seqbridge._files.readers import read as read
from seqbridge._files.safetensors import SUFFIXES as SUFFIXES
from seqbridge._files.safetensors import WeightsError as WeightsError
from seqbridge._files.safetensors import file_path as file_path
from seqbridge._files.safetensors import read_safetensors as read_safetensors
from seqbridge._files.safetensors import replacing as replacing
from seqbridge._files.safetensors import write_safetensors as write_safetensors
