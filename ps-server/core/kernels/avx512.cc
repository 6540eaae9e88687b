#include "ps-server/core/kernels/loops.h"
#include "ps-server/core/kernels/variants.h"

namespace ps::server::kernels {

const Table kAvx512 = MakeTable("avx512");

}  // namespace ps::server::kernels
