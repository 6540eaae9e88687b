#include "ps-worker/core/kernels/kernels.h"

#include "ps-worker/core/kernels/variants.h"

namespace ps::worker::kernels {
namespace {

struct Choice {
  const Table* available[4] = {&kPlain, nullptr, nullptr, nullptr};
  const Table* fastest = &kPlain;

  Choice() {
    int count = 1;
    if (__builtin_cpu_supports("avx2") != 0) {
      available[count++] = &kAvx2;
      fastest = &kAvx2;
    }
    if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
        __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
        __builtin_cpu_supports("avx512vbmi2") != 0) {
      available[count++] = &kAvx512;
      fastest = &kAvx512;
    }
  }
};

const Choice& Chosen() {
  static const Choice choice;
  return choice;
}

}  // namespace

const Table* const* Available() { return Chosen().available; }

const Table& Fastest() { return *Chosen().fastest; }

}  // namespace ps::worker::kernels
