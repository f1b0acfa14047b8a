// The probe as a kernel by itself, for nvcc: what the backend does not instantiate and tests/cuda/test_ptx.py compares.
#include "cuda_emulator/probe.h"
