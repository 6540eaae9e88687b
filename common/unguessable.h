// Numbers that nobody can guess, from the kernel's generator. Any thread.
#pragma once

#include <sys/random.h>

#include <cstdint>

#include "common/check.h"

namespace ps {

// Never 0. Waits, once after boot, until the generator has been seeded.
inline std::uint64_t UnguessableNumber() {
  std::uint64_t number = 0;
  while (number == 0) {
    // So few bytes come as a whole or not at all (getrandom(2)).
    const auto got = getrandom(&number, sizeof(number), 0);
    PS_CHECK(got == static_cast<ssize_t>(sizeof(number)), got);
  }
  return number;
}

}  // namespace ps
