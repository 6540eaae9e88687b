#include "cli/doctor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>

#include "common/net/api_tokens.h"
#include "common/net/list_file.h"
#include "common/net/loop.h"
#include "common/net/node_keys.h"
#include "common/net/unique_fd.h"
#include "common/zookeeper/session.h"

namespace ps::cli {
namespace {

using State = Finding::State;
namespace fs = std::filesystem;

constexpr int kSyncs = 20;
constexpr int kReads = 20;
constexpr double kSlowSyncMs = 50;
constexpr double kSlowReadMs = 20;
constexpr double kSkewWarnMs = 1000;
constexpr double kSkewFailMs = 60'000;
constexpr std::uint64_t kFilesWanted = 4096;
constexpr std::int64_t kMonthMs = std::int64_t{30} * 24 * 3600 * 1000;
constexpr double kGibibyte = 1024.0 * 1024 * 1024;

Finding Good(std::string check, std::string detail) {
  return {State::kOk, std::move(check), std::move(detail), ""};
}
Finding Warn(std::string check, std::string detail, std::string next) {
  return {State::kWarn, std::move(check), std::move(detail), std::move(next)};
}
Finding Fail(std::string check, std::string detail, std::string next) {
  return {State::kFail, std::move(check), std::move(detail), std::move(next)};
}

double MsSince(std::chrono::steady_clock::time_point begun) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begun)
      .count();
}

std::string Ms(double ms) { return DecimalText(ms) + " ms"; }

// "MemTotal:  123 kB" in bytes; 0 if the file has no such line.
double MemoryField(const std::string& name) {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind(name + ":", 0) == 0)
      return std::strtod(line.c_str() + name.size() + 1, nullptr) * 1024;
  }
  return 0;
}

// The smallest limit of memory among the control groups of this process; 0: none.
double GroupLimit() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  double least = 0;
  while (std::getline(groups, line)) {
    const std::size_t second = line.find(':', line.find(':') + 1);
    if (second == std::string::npos) continue;
    const bool unified = line.rfind("0::", 0) == 0;
    if (!unified && line.find(":memory:") == std::string::npos) continue;
    fs::path path = fs::path(unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") /
                    fs::path(line.substr(second + 1)).relative_path();
    const char* name = unified ? "memory.max" : "memory.limit_in_bytes";
    for (; path.string().rfind("/sys/fs/cgroup", 0) == 0; path = path.parent_path()) {
      std::ifstream limit(path / name);
      double bytes = 0;
      if (limit >> bytes && bytes > 0 && bytes < 1e15 && (least == 0 || bytes < least)) {
        least = bytes;
      }
    }
  }
  return least;
}

// Connects, and closes again. The milliseconds it took.
Result<double> Connect(const std::string& host, const std::string& port, std::int64_t deadline_ms) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return Error{ErrorCode::kUnreachable, ::gai_strerror(error)};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  std::string trouble = "no address";
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    const net::UniqueFd fd(
        ::socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (fd.get() < 0) continue;
    const auto begun = std::chrono::steady_clock::now();
    int error = 0;
    if (::connect(fd.get(), address->ai_addr, address->ai_addrlen) != 0) {
      error = errno;
      if (error == EINPROGRESS) {
        pollfd ready{fd.get(), POLLOUT, 0};
        if (::poll(&ready, 1, static_cast<int>(deadline_ms)) == 1) {
          socklen_t size = sizeof error;
          (void)::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        } else {
          error = ETIMEDOUT;
        }
      }
    }
    if (error == 0) return MsSince(begun);
    trouble = std::strerror(error);
  }
  return Error{ErrorCode::kUnreachable, trouble};
}

// "tcp://host:port", "tcp://[::1]:port"
std::pair<std::string, std::string> HostAndPort(const std::string& keyed_endpoint) {
  std::string endpoint = net::SplitKey(keyed_endpoint).address;
  if (const std::size_t scheme = endpoint.find("://"); scheme != std::string::npos) {
    endpoint.erase(0, scheme + 3);
  }
  const std::size_t colon = endpoint.rfind(':');
  if (colon == std::string::npos) return {endpoint, ""};
  std::string host = endpoint.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return {host, endpoint.substr(colon + 1)};
}

// Over, or over within a month.
Finding JudgeEnd(const std::string& check, const std::string& text, std::int64_t until_ms,
                 std::int64_t now_ms, const std::string& next) {
  if (now_ms >= until_ms) return Fail(check, text + ": over", next);
  if (now_ms + kMonthMs >= until_ms) return Warn(check, text, next);
  return Good(check, text);
}

Finding CheckSkew(const Json& version, double took_ms, std::int64_t wall_ms) {
  const auto theirs = NumberOf(version, "time_ms");
  if (!theirs) return Warn("clock of the coordinator", "it does not say what time it is", "");
  // It was read somewhere within the call.
  const double skew = std::abs(*theirs - (static_cast<double>(wall_ms) - took_ms / 2));
  const std::string text =
      Ms(skew) + " from this machine's, of which the call may be " + Ms(took_ms / 2);
  if (skew > kSkewFailMs + took_ms) {
    return Fail("clock of the coordinator", text, "let both follow NTP (chrony)");
  }
  if (skew > kSkewWarnMs + took_ms) {
    return Warn("clock of the coordinator", text, "let both follow NTP (chrony)");
  }
  return Good("clock of the coordinator", text);
}

}  // namespace

const char* StateName(State state) {
  switch (state) {
    case State::kOk: return "ok";
    case State::kWarn: return "warn";
    case State::kFail: return "fail";
  }
  return "unknown";
}

Finding CheckProcessor() {
  const long count = ::sysconf(_SC_NPROCESSORS_ONLN);
  const std::string cores = CountText(static_cast<std::int64_t>(count)) + " processors, ";
  if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0) {
    return Good("processor", cores + "AVX-512");
  }
  if (__builtin_cpu_supports("avx2") != 0) return Good("processor", cores + "AVX2");
  return Warn("processor", cores + "neither AVX2 nor AVX-512",
              "it works, with plain code: updates and codecs are several times slower");
}

Finding CheckMemory() {
  const double total = MemoryField("MemTotal");
  const double available = MemoryField("MemAvailable");
  const double limit = GroupLimit();
  std::string text = BytesText(available) + " of " + BytesText(total) + " available";
  if (limit > 0 && limit < total) {
    text += ", limited to " + BytesText(limit) + " by a control group";
  }
  const double usable = limit > 0 ? std::min(limit, available) : available;
  if (usable < kGibibyte) {
    return Warn("memory", text,
                "a server needs the parameters and their optimizer's slots, twice "
                "with a backup");
  }
  return Good("memory", text);
}

Finding CheckSharedMemory() {
  struct statvfs there {};
  if (::statvfs("/dev/shm", &there) != 0) {
    return Fail("/dev/shm", std::strerror(errno),
                "mount a tmpfs there, or give ps-worker a --retention-dir");
  }
  const double free = static_cast<double>(there.f_bavail) * static_cast<double>(there.f_frsize);
  const std::string text = BytesText(free) + " free";
  if (free < kGibibyte) {
    return Warn("/dev/shm", text,
                "a task keeps up to resources.retention_mebibytes (1 GiB) of pushes there");
  }
  return Good("/dev/shm", text);
}

Finding CheckOpenFiles() {
  rlimit limit{};
  (void)::getrlimit(RLIMIT_NOFILE, &limit);
  const std::string text = limit.rlim_max == RLIM_INFINITY
                               ? "no limit"
                               : CountText(static_cast<std::int64_t>(limit.rlim_max)) + " at most";
  if (limit.rlim_max < kFilesWanted) {
    return Warn("open files", text, "raise it (LimitNOFILE=, ulimit -n): each worker is a socket");
  }
  return Good("open files", text);
}

Finding CheckClock() {
  timex clock{};
  const int state = ::adjtimex(&clock);
  if (state < 0) return Warn("clock", "cannot be asked: " + std::string(std::strerror(errno)), "");
  if (state == TIME_ERROR || (clock.status & STA_UNSYNC) != 0) {
    return Warn("clock", "no time service keeps it",
                "nothing depends on it but times in events; install chrony");
  }
  return Good("clock", "kept by a time service");
}

Finding CheckGpus() {
  std::ifstream version("/proc/driver/nvidia/version");
  std::string line;
  if (!std::getline(version, line))
    return Good("GPUs", "no NVIDIA driver: tasks run on processors");
  std::int64_t count = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    count += entry.is_directory() ? 1 : 0;
  }
  return Good("GPUs", CountText(count) + "; " + line);
}

Finding CheckDirectory(const std::string& directory) {
  const std::string check = "directory " + directory;
  const std::string writable = "it must exist, and the daemon's user must be able to write to it";
  std::string path = directory + "/.ds-doctor-XXXXXX";
  const net::UniqueFd fd(::mkostemp(path.data(), O_CLOEXEC));
  if (fd.get() < 0) return Fail(check, std::strerror(errno), writable);
  (void)::unlink(path.c_str());
  const std::array<char, 4096> block{};
  std::vector<double> took;
  for (int i = 0; i < kSyncs; ++i) {
    const auto begun = std::chrono::steady_clock::now();
    if (::pwrite(fd.get(), block.data(), block.size(), 0) != static_cast<ssize_t>(block.size()) ||
        ::fsync(fd.get()) != 0) {
      return Fail(check, "a write and fsync: " + std::string(std::strerror(errno)),
                  "room, quota, or the disk");
    }
    took.push_back(MsSince(begun));
  }
  std::sort(took.begin(), took.end());
  struct statvfs there {};
  const bool known = ::statvfs(directory.c_str(), &there) == 0;
  const double free = static_cast<double>(there.f_bavail) * static_cast<double>(there.f_frsize);
  const double all = static_cast<double>(there.f_blocks) * static_cast<double>(there.f_frsize);
  const std::string text = "fsync of 4 KiB in " + Ms(took[took.size() / 2]) + ", at worst " +
                           Ms(took.back()) + (known ? "; " + BytesText(free) + " free" : "");
  if (known && free < 0.05 * all) return Warn(check, text, "make room: checkpoints need it");
  if (took[took.size() / 2] > kSlowSyncMs) {
    return Warn(check, text, "a slow disk: checkpoints take long; ZooKeeper should have another");
  }
  return Good(check, text);
}

Finding CheckPort(int port) {
  const std::string check = "port " + std::to_string(port);
  const net::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  if (fd.get() < 0 ||
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Fail(check, std::strerror(errno), "what has it: ss -ltnp");
  }
  return Good(check, "free");
}

Finding CheckKey(const std::string& file, const std::string& trusted, std::int64_t now_ms) {
  const std::string check = "key " + file;
  const auto pair = net::ReadKeyFile(file);
  if (!pair.ok()) return Fail(check, pair.error().message, "");
  const auto list = net::TrustedKeys::ReadFile(trusted);
  if (!list.ok()) return Fail(check, list.error().message, "bring the cluster's list to this node");
  const auto found = list->keys().find(pair->public_key);
  if (found == list->keys().end()) {
    return Fail(check, "is not in " + trusted,
                "bring the cluster's list to this node, or make a new key: ds-cli auth create");
  }
  const net::TrustedKey& key = found->second;
  const std::string who = std::string(net::RoleName(key.role)) + " " + key.name;
  if (!key.until_ms) return Good(check, who);
  return JudgeEnd(check, who + ", until " + net::DateText(*key.until_ms), *key.until_ms, now_ms,
                  "make a new one in time: ds-cli auth create");
}

Finding CheckCertificate(const net::TlsFiles& files, std::int64_t now_ms) {
  const std::string check = "certificate " + files.certificate;
  const char* const next = "make a new one: ds-cli auth certificate";
  const auto tls = net::OpenServerTls(files);
  if (!tls.ok()) return Fail(check, tls.error().message, next);
  return JudgeEnd(check, "until " + net::DateText(tls->until_ms), tls->until_ms, now_ms, next);
}

Finding CheckTokens(const std::string& file, std::int64_t now_ms) {
  const std::string check = "tokens " + file;
  const auto list = net::ApiTokens::ReadFile(file);
  if (!list.ok()) return Fail(check, list.error().message, "");
  std::string over;
  std::string soon;
  std::size_t admins = 0;
  for (const net::ApiToken& token : list->tokens()) {
    const bool expired = token.expired(now_ms);
    if (!expired && token.role == net::ApiRole::kAdmin) ++admins;
    if (!expired && !token.expired(now_ms + kMonthMs)) continue;
    std::string& names = expired ? over : soon;
    names += (names.empty() ? "" : ", ") + token.name;
  }
  std::string text = CountText(static_cast<std::int64_t>(list->tokens().size())) + " tokens";
  if (!over.empty()) text += "; over: " + over;
  if (!soon.empty()) text += "; over within a month: " + soon;
  if (admins == 0) {
    return Fail(check, text + "; none of an admin that is valid",
                "nobody can drain a node: ds-cli token create admin NAME --tokens " + file);
  }
  if (!over.empty() || !soon.empty()) {
    return Warn(check, text,
                "ds-cli token create and revoke, and bring the list to all coordinators");
  }
  return Good(check, text);
}

Finding CheckZooKeeper(const std::string& hosts, const std::string& secret,
                       std::int64_t deadline_ms) {
  const std::string check = "ZooKeeper " + hosts;
  const std::string next = "is it running, and may this machine reach it";
  net::Loop loop;
  zk::Session::Options options;
  options.hosts = hosts;
  options.secret_file = secret;
  options.connect_deadline = std::chrono::milliseconds(deadline_ms);
  zk::Session session(loop.context(), options);
  const auto begun = std::chrono::steady_clock::now();
  if (const Status started = session.Start(); !started.ok()) {
    return Fail(check, started.error().message,
                "HOST:PORT[,HOST:PORT...][/CHROOT], and the file of ds-cli auth zookeeper");
  }
  const auto left = [&] {
    return net::Milliseconds(
        std::max<std::int64_t>(1, deadline_ms - static_cast<std::int64_t>(MsSince(begun))));
  };
  if (!loop.RunUntil([&] { return session.connected(); }, left())) {
    return Fail(check, "no session within " + Ms(static_cast<double>(deadline_ms)), next);
  }
  std::vector<double> took;
  bool exists = false;
  for (int i = 0; i < kReads; ++i) {
    bool answered = false;
    const auto asked = std::chrono::steady_clock::now();
    session.Exists("/coordinators", [&](const Result<bool>& there) {
      answered = true;
      exists = there.ok() && *there;
    });
    if (!loop.RunUntil([&] { return answered; }, left())) {
      return Fail(
          check,
          "a session, but a read is not answered within " + Ms(static_cast<double>(deadline_ms)),
          next);
    }
    took.push_back(MsSince(asked));
  }
  std::optional<Status> listed;
  session.Children("/coordinators", [&](const Result<std::vector<std::string>>& names) {
    listed = names.ok() ? Ok() : Status(names.error());
  });
  loop.RunUntil([&] { return listed.has_value(); }, left());
  if (listed && !listed->ok() && listed->error().code == ErrorCode::kDenied) {
    return Fail(check, "what the cluster keeps there may not be read",
                secret.empty() ? "give the cluster's secret with --zookeeper-secret"
                               : secret + " is not the secret of the daemons");
  }
  std::sort(took.begin(), took.end());
  const double granted = static_cast<double>(session.session_timeout().count());
  std::string text = "a read in " + Ms(took[took.size() / 2]) + ", at worst " + Ms(took.back()) +
                     "; asked for sessions of " +
                     Ms(static_cast<double>(options.session_timeout.count())) + ", granted " +
                     Ms(granted);
  if (!exists) text += "; no coordinator has been here yet";
  if (took[took.size() / 2] > kSlowReadMs) {
    return Warn(check, text, "sessions may be lost: its disk and network");
  }
  return Good(check, text);
}

std::vector<Finding> CheckCluster(Api& api, const DoctorOptions& options) {
  std::vector<Finding> findings;
  api.set_deadline_ms(options.deadline_ms);
  const auto begun = std::chrono::steady_clock::now();
  const auto version = api.Get("/v1/version");
  const double took = MsSince(begun);
  const std::int64_t wall = net::WallClockMs();
  if (!version.ok()) {
    findings.push_back(
        Fail("coordinator", version.error().message, "start one, or name it: --coordinator URL"));
    if (!options.zookeeper.empty()) {
      findings.push_back(
          CheckZooKeeper(options.zookeeper, options.zookeeper_secret, options.deadline_ms));
    }
    return findings;
  }
  const std::string theirs = TextOf(*version, "version", "unknown");
  const std::string text =
      TextOf(*version, "id") + ", version " + theirs + ", answers in " + Ms(took);
  findings.push_back(theirs == PS_VERSION
                         ? Good("coordinator", text)
                         : Warn("coordinator", text, "this ds-cli is of version " PS_VERSION));
  findings.push_back(CheckSkew(*version, took, wall));
  const std::string zookeeper =
      options.zookeeper.empty() ? TextOf(*version, "zookeeper") : options.zookeeper;
  findings.push_back(CheckZooKeeper(zookeeper, options.zookeeper_secret, options.deadline_ms));
  const auto nodes = api.Get("/v1/nodes");
  if (!nodes.ok()) {
    findings.push_back(Fail("nodes", nodes.error().message, "ds-cli node list"));
    return findings;
  }
  for (const Json& node : MemberOf(*nodes, "nodes")) {
    const std::string name = TextOf(node, "kind") + " " + TextOf(node, "name");
    const std::string state = TextOf(node, "state", "there");
    if (state == "unsteady" || state == "announcing" || state == "registering") {
      findings.push_back(Warn(name, state, "its log on " + TextOf(node, "host")));
    }
    const Json& lanes = MemberOf(node, "lanes");
    if (!lanes.is_array() || lanes.empty() || !lanes[0].is_string()) continue;
    const auto [host, port] = HostAndPort(lanes[0].get<std::string>());
    const auto connected = Connect(host, port, options.deadline_ms);
    const std::string where = host + ":" + port;
    findings.push_back(
        connected.ok() ? Good(name, "its first lane " + where + " connects in " + Ms(*connected))
                       : Fail(name, "its first lane " + where + ": " + connected.error().message,
                              "a firewall, or --advertise of that server"));
  }
  return findings;
}

}  // namespace ps::cli
