// PS_HOST_DEVICE: a function that kernels call as well.
//
// Only nvcc knows two kinds of functions; for every other compiler the word means nothing.
#pragma once

#if defined(__CUDACC__)
#define PS_HOST_DEVICE __host__ __device__
#else
#define PS_HOST_DEVICE
#endif
