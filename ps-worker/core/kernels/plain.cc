#include "ps-worker/core/kernels/loops.h"
#include "ps-worker/core/kernels/variants.h"

namespace ps::worker::kernels {

const Table kPlain = MakeTable("plain");

}  // namespace ps::worker::kernels
