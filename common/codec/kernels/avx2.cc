#include "common/codec/kernels/loops.h"
#include "common/codec/kernels/variants.h"

namespace ps::codec::kernels {

const Table kAvx2 = MakeTable("avx2");

}  // namespace ps::codec::kernels
