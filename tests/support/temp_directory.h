// A temporary directory that is removed with its contents at the end of the scope.
//
// Its name has a space, so that whatever a test does with it works for such names. TMPDIR is
// honoured. With PS_KEEP_TEMP set in the environment it stays, for a look at logs.
#pragma once

#include <filesystem>
#include <string>

namespace ps::test {

class TempDirectory {
 public:
  explicit TempDirectory(const std::string& name = "test");
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  ~TempDirectory();

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace ps::test
