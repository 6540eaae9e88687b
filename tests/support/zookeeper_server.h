// A real standalone ZooKeeper of Debian's packages on a free port of 127.0.0.1, for tests.
//
// Its ticks are 200 ms, so sessions may be as short as 400 ms. Data is kept over Kill and Restart.
// Needs `java` in PATH and the jars in /usr/share/java (PS_ZOOKEEPER_JARS names another folder). It
// never survives the test (see ChildProcess); start it from the main thread.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "common/result.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_directory.h"

namespace ps::test {

class ZooKeeperServer {
 public:
  struct Options {
    int tick_time_ms = 200;
    std::chrono::milliseconds start_deadline{60'000};
  };

  // Returns once it serves requests.
  static Result<std::unique_ptr<ZooKeeperServer>> Start(Options options);
  static Result<std::unique_ptr<ZooKeeperServer>> Start();

  explicit ZooKeeperServer(Options options);  // for Start
  ZooKeeperServer(const ZooKeeperServer&) = delete;
  ZooKeeperServer& operator=(const ZooKeeperServer&) = delete;

  int port() const { return port_; }
  std::string address() const;  // "127.0.0.1:12345"
  // Path of what it logged.
  std::filesystem::path log() const { return directory_ / "zookeeper.log"; }

  void Stop();      // SIGSTOP: it keeps its connections and answers nothing
  void Continue();  // SIGCONT
  void Kill();      // SIGKILL
  // On the same port with the same data, after Kill or while it runs.
  Status Restart();

 private:
  Status Launch();
  bool Serves() const;

  const Options options_;
  TempDirectory directory_;
  int port_ = 0;
  std::unique_ptr<ChildProcess> process_;  // last, so that it is killed before its files go
};

// An address of 127.0.0.1 where nobody listens.
std::string UnreachableAddress();

}  // namespace ps::test
