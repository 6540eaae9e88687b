// The variants of the kernels, as their files define them; kernels.cc chooses.
#pragma once

#include "ps-server/core/kernels/kernels.h"

namespace ps::server::kernels {

extern const Table kPlain;
extern const Table kAvx2;
extern const Table kAvx512;

}  // namespace ps::server::kernels
