// The variants of the kernels, as their files define them; kernels.cc chooses.
#pragma once

#include "ps-worker/core/kernels/kernels.h"

namespace ps::worker::kernels {

extern const Table kPlain;
extern const Table kAvx2;
extern const Table kAvx512;

}  // namespace ps::worker::kernels
