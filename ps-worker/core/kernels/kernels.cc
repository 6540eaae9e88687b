#include "ps-worker/core/kernels/kernels.h"

#include "common/kernel_choice.h"
#include "ps-worker/core/kernels/variants.h"

namespace ps::worker::kernels {
namespace {

const KernelChoice<Table>& Chosen() {
  static const KernelChoice<Table> choice(kPlain, kAvx2, kAvx512, /*vbmi2=*/true);
  return choice;
}

}  // namespace

const Table* const* Available() { return Chosen().available; }

const Table& Fastest() { return *Chosen().fastest; }

}  // namespace ps::worker::kernels
