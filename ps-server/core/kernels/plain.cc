#include "ps-server/core/kernels/loops.h"
#include "ps-server/core/kernels/variants.h"

namespace ps::server::kernels {

const Table kPlain = MakeTable("plain");

}  // namespace ps::server::kernels
