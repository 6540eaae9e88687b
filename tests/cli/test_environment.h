// An Environment of strings, and a directory that goes with the test.
#pragma once

#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cli/app.h"
#include "cli/environment.h"

namespace ps::cli {

class TestEnvironment {
 public:
  TestEnvironment();
  ~TestEnvironment();

  // Runs the program; output() and errors() are those of this call.
  int Run(const std::vector<std::string>& arguments);

  std::string output() const { return out_.str(); }
  std::string errors() const { return err_.str(); }
  Environment& environment() { return environment_; }
  const std::filesystem::path& directory() const { return directory_; }
  void Set(const std::string& variable, const std::string& value) { variables_[variable] = value; }
  // Interrupted from the n-th sleep on; the test's clock advances only by sleeping.
  void InterruptAfterSleeps(int sleeps) { interrupt_after_ = sleeps; }
  void UseRealTime();
  std::string Write(const std::string& name, const std::string& text);

 private:
  std::ostringstream out_;
  std::ostringstream err_;
  std::map<std::string, std::string> variables_;
  std::filesystem::path directory_;
  std::int64_t now_ms_ = 1000;
  int interrupt_after_ = -1;
  int sleeps_ = 0;
  Environment environment_;
};

}  // namespace ps::cli
