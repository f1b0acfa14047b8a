// What the compiler makes of every word of the vocabulary, and of the sample kernel with most of them: for
// tests/cuda/test_ptx.py.
#include "cuda_emulator/probe.h"
#include "cuda_emulator/samples/attention_72.h"

template __global__ void kimi::cuda::attend_heads_of_72<4>(kimi::cuda::HeadsOf72Args);
