#include "common/codec/kernels/loops.h"
#include "common/codec/kernels/variants.h"

namespace ps::codec::kernels {

const Table kAvx512 = MakeTable("avx512");

}  // namespace ps::codec::kernels
