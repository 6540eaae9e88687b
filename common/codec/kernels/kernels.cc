#include "common/codec/kernels/kernels.h"

#include "common/codec/kernels/variants.h"
#include "common/kernel_choice.h"

namespace ps::codec::kernels {
namespace {

const KernelChoice<Table>& Chosen() {
  static const KernelChoice<Table> choice(kPlain, kAvx2, kAvx512, /*vbmi2=*/true);
  return choice;
}

}  // namespace

const Table* const* Available() { return Chosen().available; }

const Table& Fastest() { return *Chosen().fastest; }

}  // namespace ps::codec::kernels
