#include "tests/support/zookeeper_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

namespace ps::test {

namespace {

using std::chrono::milliseconds;

constexpr int kPortTries = 5;

// One of ZooKeeper's four letter commands; empty if it does not answer within a second.
std::string FourLetters(int port, const std::string& command) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return "";
  timeval limit{};
  limit.tv_sec = 1;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
      write(fd, command.data(), command.size()) == static_cast<ssize_t>(command.size())) {
    char buffer[4096];
    for (ssize_t got = 0; (got = read(fd, buffer, sizeof(buffer))) > 0;) {
      answer.append(buffer, static_cast<std::size_t>(got));
    }
  }
  close(fd);
  return answer;
}

std::string JarFolder() {
  const char* const folder = std::getenv("PS_ZOOKEEPER_JARS");
  return folder == nullptr ? "/usr/share/java" : folder;
}

}  // namespace

ZooKeeperServer::ZooKeeperServer(Options options) : options_(options), directory_("zookeeper") {}

Result<std::unique_ptr<ZooKeeperServer>> ZooKeeperServer::Start() { return Start(Options()); }

Result<std::unique_ptr<ZooKeeperServer>> ZooKeeperServer::Start(Options options) {
  auto server = std::make_unique<ZooKeeperServer>(options);
  Status status;
  // Another process may take the port before ZooKeeper does.
  for (int i = 0; i < kPortTries; ++i) {
    server->port_ = PS_TRY(FreePort());
    status = server->Launch();
    if (status.ok() || status.error().code != ErrorCode::kConflict) break;
  }
  PS_TRY(status);
  return server;
}

std::string ZooKeeperServer::address() const { return "127.0.0.1:" + std::to_string(port_); }

bool ZooKeeperServer::Serves() const {
  return FourLetters(port_, "ruok") == "imok" &&
         FourLetters(port_, "srvr").find("Mode: standalone") != std::string::npos;
}

Status ZooKeeperServer::Launch() {
  std::error_code ignored;
  std::filesystem::create_directory(directory_ / "data", ignored);
  std::ofstream(directory_ / "zoo.cfg") << "tickTime=" << options_.tick_time_ms << "\n"
                                        << "dataDir=" << (directory_ / "data").string() << "\n"
                                        << "clientPort=" << port_ << "\n"
                                        << "clientPortAddress=127.0.0.1\n"
                                        << "maxSessionTimeout=60000\n"
                                        << "maxClientCnxns=0\n"
                                        << "admin.enableServer=false\n"
                                        << "4lw.commands.whitelist=srvr,ruok\n";
  std::ofstream(directory_ / "log4j.properties")
      << "log4j.rootLogger=WARN, out\n"
      << "log4j.appender.out=org.apache.log4j.ConsoleAppender\n"
      << "log4j.appender.out.layout=org.apache.log4j.PatternLayout\n"
      << "log4j.appender.out.layout.ConversionPattern=%d{ISO8601} %-5p %c{1} %m%n\n";
  const std::string jars = JarFolder();
  ChildProcess::Options options;
  options.argv = {"java",
                  "-Xmx128m",
                  "-XX:+UseSerialGC",
                  "-XX:TieredStopAtLevel=1",
                  "-XX:-UsePerfData",
                  "-Dzookeeper.preAllocSize=1024",
                  "-Dzookeeper.forceSync=no",
                  "-cp",
                  directory_.path().string() + ":" + jars + "/zookeeper.jar:" + jars +
                      "/slf4j-log4j12.jar:" + jars + "/log4j-1.2.jar",
                  "org.apache.zookeeper.server.ZooKeeperServerMain",
                  (directory_ / "zoo.cfg").string()};
  options.output = log();
  options.directory = directory_.path();
  process_ = PS_TRY(ChildProcess::Start(options));
  const auto end = std::chrono::steady_clock::now() + options_.start_deadline;
  while (!Serves()) {
    const bool timeout = std::chrono::steady_clock::now() >= end;
    if (!timeout && process_->Running()) {
      std::this_thread::sleep_for(milliseconds(20));
      continue;
    }
    const std::string output = process_->Output();
    const bool port_taken = output.find("Address already in use") != std::string::npos;
    process_.reset();
    return Error{port_taken ? ErrorCode::kConflict : ErrorCode::kTimeout,
                 "ZooKeeper on port " + std::to_string(port_) +
                     (timeout ? " does not serve in time" : " ended at once") + "; it printed:\n" +
                     output};
  }
  return Ok();
}

void ZooKeeperServer::Stop() { process_->Stop(); }
void ZooKeeperServer::Continue() { process_->Continue(); }
void ZooKeeperServer::Kill() { process_->Kill(); }

Status ZooKeeperServer::Restart() {
  if (process_) process_->Kill();
  return Launch();
}

std::string UnreachableAddress() {
  const auto port = FreePort();
  return "127.0.0.1:" + std::to_string(port.ok() ? *port : 1);
}

}  // namespace ps::test
