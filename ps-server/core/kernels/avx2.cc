#include "ps-server/core/kernels/loops.h"
#include "ps-server/core/kernels/variants.h"

namespace ps::server::kernels {

const Table kAvx2 = MakeTable("avx2");

}  // namespace ps::server::kernels
