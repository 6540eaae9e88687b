#include "ps-server/core/kernels/kernels.h"

#include "common/kernel_choice.h"
#include "ps-server/core/kernels/variants.h"

namespace ps::server::kernels {
namespace {

const KernelChoice<Table>& Chosen() {
  static const KernelChoice<Table> choice(kPlain, kAvx2, kAvx512, /*vbmi2=*/false);
  return choice;
}

}  // namespace

const Table* const* Available() { return Chosen().available; }

const Table& Fastest() { return *Chosen().fastest; }

}  // namespace ps::server::kernels
