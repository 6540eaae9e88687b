#include "ps-worker/core/kernels/loops.h"
#include "ps-worker/core/kernels/variants.h"

namespace ps::worker::kernels {

const Table kAvx512 = MakeTable("avx512");

}  // namespace ps::worker::kernels
