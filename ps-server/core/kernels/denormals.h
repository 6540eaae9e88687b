// Makes the calling thread treat denormal floats as zero while an object of this lives.
//
// The slots of elements whose gradient has become zero decay into denormals, on
// which a processor is many times slower. Nothing that a job can see is lost:
// they are below 1.2e-38.
#pragma once

#include <xmmintrin.h>

namespace ps::server::kernels {

class DenormalsAreZero {
 public:
  DenormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushToZero | kReadAsZero); }
  ~DenormalsAreZero() { _mm_setcsr(before_); }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 0x8000;
  static constexpr unsigned kReadAsZero = 0x0040;

  const unsigned before_;
};

}  // namespace ps::server::kernels
