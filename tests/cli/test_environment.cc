#include "tests/cli/test_environment.h"

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "common/check.h"

namespace ps::cli {
namespace {

std::filesystem::path MakeDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "ds cli test XXXXXX").string();
  PS_CHECK(::mkdtemp(name.data()) != nullptr, name);
  return name;
}

}  // namespace

TestEnvironment::TestEnvironment()
    : directory_(MakeDirectory()), environment_{.out = out_, .err = err_} {
  variables_["DS_STATE"] = (directory_ / "state" / "local.json").string();
  variables_["HOME"] = (directory_ / "home").string();
  environment_.program_directory = directory_.string();
  environment_.variable = [this](const char* name) {
    const auto found = variables_.find(name);
    return found == variables_.end() ? std::string() : found->second;
  };
  environment_.now_ms = [this] { return now_ms_; };
  environment_.sleep = [this](std::chrono::milliseconds time) {
    now_ms_ += time.count();
    ++sleeps_;
  };
  environment_.interrupted = [this] {
    return interrupt_after_ >= 0 && sleeps_ >= interrupt_after_;
  };
}

TestEnvironment::~TestEnvironment() {
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void TestEnvironment::UseRealTime() {
  environment_.now_ms = [] {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  environment_.sleep = [](std::chrono::milliseconds time) { std::this_thread::sleep_for(time); };
}

int TestEnvironment::Run(const std::vector<std::string>& arguments) {
  out_.str("");
  err_.str("");
  return static_cast<int>(RunCli(arguments, environment_));
}

std::string TestEnvironment::Write(const std::string& name, const std::string& text) {
  const std::filesystem::path path = directory_ / name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
  return path.string();
}

}  // namespace ps::cli
