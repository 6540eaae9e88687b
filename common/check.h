// PS_CHECK(condition, values...): what cannot be false unless we have a bug.
//
// On failure it prints the condition, the place and the values to stderr and
// aborts; the service manager restarts the daemon. Never use it on anything a
// peer, a file or an operator can cause: that is a Status.
#pragma once

#include <sstream>
#include <string>

namespace ps::internal {

[[noreturn]] void CheckFailed(const char* condition, const char* file, int line,
                              const std::string& values);

template <typename... Values>
[[noreturn]] void CheckFailedWith(const char* condition, const char* file, int line,
                                  const Values&... values) {
  std::ostringstream text;
  (void)std::initializer_list<int>{((text << ' ' << values), 0)...};
  CheckFailed(condition, file, line, text.str());
}

}  // namespace ps::internal

#define PS_CHECK(condition, ...)                                                                  \
  do {                                                                                            \
    if (!(condition)) [[unlikely]]                                                                \
      ::ps::internal::CheckFailedWith(#condition, __FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
