#include "ps-worker/core/kernels/loops.h"
#include "ps-worker/core/kernels/variants.h"

namespace ps::worker::kernels {

const Table kAvx2 = MakeTable("avx2");

}  // namespace ps::worker::kernels
