#include "tests/support/temp_directory.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "common/check.h"

namespace ps::test {

TempDirectory::TempDirectory(const std::string& name) {
  std::string pattern =
      (std::filesystem::temp_directory_path() / ("ps " + name + "-XXXXXX")).string();
  const char* const made = mkdtemp(pattern.data());
  PS_CHECK(made != nullptr, pattern, std::strerror(errno));
  path_ = pattern;
}

TempDirectory::~TempDirectory() {
  if (std::getenv("PS_KEEP_TEMP") != nullptr) return;
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace ps::test
