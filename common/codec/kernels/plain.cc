#include "common/codec/kernels/loops.h"
#include "common/codec/kernels/variants.h"

namespace ps::codec::kernels {

const Table kPlain = MakeTable("plain");

}  // namespace ps::codec::kernels
