// Which variants of a set of kernels the running processor has.
//
// For the kernels.cc of each set alone, which is compiled for any x86-64: the variants themselves
// must not include it (see their kernels.h).
#pragma once

namespace ps {

template <typename Table>
struct KernelChoice {
  const Table* available[4];  // the plain one first; ends with null
  const Table* fastest;

  // `vbmi2`: the third one needs AVX-512 VBMI2 beside F, BW, DQ and VL.
  KernelChoice(const Table& plain, const Table& avx2, const Table& avx512, bool vbmi2)
      : available{&plain, nullptr, nullptr, nullptr}, fastest(&plain) {
    int count = 1;
    if (__builtin_cpu_supports("avx2") != 0) {
      available[count++] = &avx2;
      fastest = &avx2;
    }
    if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
        __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
        (!vbmi2 || __builtin_cpu_supports("avx512vbmi2") != 0)) {
      available[count++] = &avx512;
      fastest = &avx512;
    }
  }
};

}  // namespace ps
