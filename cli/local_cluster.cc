#include "cli/local_cluster.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "cli/api_token_files.h"
#include "cli/certificates.h"
#include "cli/node_key_files.h"
#include "cli/output.h"
#include "common/error_id.h"
#include "common/net/api_tokens.h"
#include "common/net/http_client.h"
#include "common/net/unique_fd.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kSessionMsMin = 1000;  // two ticks of the ZooKeeper that we start
constexpr int kSessionMsMax = 10'000;
constexpr std::chrono::milliseconds kStopPatience{10'000};
constexpr std::chrono::milliseconds kCheckPause{100};
constexpr std::int64_t kDyingMs = 1000;
constexpr int kCertificateDays = 3650;
constexpr std::uintmax_t kTailBytes = 4096;
constexpr int kTailLines = 12;
constexpr const char* kJars[] = {"/usr/share/java/zookeeper.jar",
                                 "/usr/share/java/slf4j-log4j12.jar",
                                 "/usr/share/java/log4j-1.2.jar"};
constexpr const char* kPackages = "apt-get install zookeeper default-jre-headless";

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Binds and listens on the port (0: any), so that nobody else gets it meanwhile.
Result<net::UniqueFd> HoldPort(int& port) {
  net::UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) return Error{ErrorCode::kIo, "cannot open a socket"};
  const int on = 1;
  // Connections of the cluster before this one may still linger in the kernel.
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address = Loopback(port);
  socklen_t length = sizeof address;
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(socket.get(), 1) != 0 ||
      ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return Error{ErrorId::kPortTaken,
                 "port " + std::to_string(port) + " of 127.0.0.1: " + std::strerror(errno)};
  }
  port = ntohs(address.sin_port);
  return socket;
}

// What ZooKeeper says to `ruok`: "" while it does not answer.
std::string AskZooKeeper(int port) {
  const net::UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket.get() < 0) return "";
  const sockaddr_in address = Loopback(port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
      errno != EINPROGRESS) {
    return "";
  }
  const auto wait = [&socket](short events) {
    pollfd poll_socket{socket.get(), events, 0};
    return ::poll(&poll_socket, 1, 1000) == 1;
  };
  if (!wait(POLLOUT) || ::send(socket.get(), "ruok", 4, MSG_NOSIGNAL) != 4 || !wait(POLLIN)) {
    return "";
  }
  char answer[16];
  const ssize_t got = ::recv(socket.get(), answer, sizeof answer, 0);
  return got > 0 ? std::string(answer, static_cast<std::size_t>(got)) : "";
}

bool IsExecutable(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && ::access(path.c_str(), X_OK) == 0;
}

std::string Numbered(const char* kind, int number) {
  return std::string(kind) + "-" + std::to_string(number);
}

std::string KindOf(const std::string& name) { return name.substr(0, name.rfind('-')); }

Status WriteFile(const fs::path& path, const std::string& text) {
  const fs::path temporary = path.string() + ".tmp";
  {
    std::ofstream stream(temporary, std::ios::binary | std::ios::trunc);
    stream << text;
    stream.flush();
    if (!stream) return Error{ErrorId::kFileNotWritten, "cannot write " + temporary.string()};
  }
  std::error_code error;
  fs::rename(temporary, path, error);
  if (error)
    return Error{ErrorId::kFileNotWritten,
                 "cannot write " + path.string() + ": " + error.message()};
  return Ok();
}

}  // namespace

struct LocalCluster::Programs {
  std::string java;
  std::string coordinator;
  std::string server;
  std::string worker;
  std::string task;
};

LocalConfig ApplySizes(LocalConfig config, const LocalSizes& sizes) {
  if (sizes.coordinators) config.coordinators = *sizes.coordinators;
  if (sizes.servers) config.servers = *sizes.servers;
  if (sizes.lanes) config.lanes = *sizes.lanes;
  if (sizes.session_ms) config.session_ms = *sizes.session_ms;
  config.own_disks = config.own_disks || sizes.own_disks;
  config.secure = config.secure || sizes.secure;
  if (sizes.workers || sizes.agents) {
    const int workers = sizes.workers.value_or(*sizes.agents);
    config.agents = std::min(sizes.agents.value_or(workers), workers);
    config.slots = (workers + config.agents - 1) / config.agents;
  }
  config.http_ports.resize(static_cast<std::size_t>(config.coordinators), 0);
  return config;
}

fs::path DefaultLocalDirectory(const Environment& environment) {
  if (const std::string data = environment.variable("XDG_DATA_HOME"); !data.empty()) {
    return fs::path(data) / "ds" / "local";
  }
  const std::string home = environment.variable("HOME");
  return fs::path(home.empty() ? "/" : home) / ".local" / "share" / "ds" / "local";
}

LocalCluster::LocalCluster(Environment& environment, fs::path directory)
    : environment_(environment), directory_(std::move(directory)), table_(directory_ / "run") {}

std::vector<std::string> LocalCluster::CoordinatorUrls(const LocalConfig& config) {
  std::vector<std::string> urls;
  for (const int port : config.http_ports)
    urls.push_back((config.secure ? "https://127.0.0.1:" : "http://127.0.0.1:") +
                   std::to_string(port));
  return urls;
}

Result<LocalConfig> LocalCluster::ReadConfig() const {
  const fs::path path = directory_ / "cluster.json";
  std::ifstream stream(path, std::ios::binary);
  if (!stream)
    return Error{ErrorId::kNoLocalCluster, "there is no local cluster in " + directory_.string()};
  std::stringstream text;
  text << stream.rdbuf();
  const Json json = Json::parse(text.str(), nullptr, false);
  LocalConfig config;
  const auto read = [&json](const char* key, int least, int most, int& value) {
    const std::int64_t number = IntegerOf(json, key, -1);
    if (number < least || number > most) return false;
    value = static_cast<int>(number);
    return true;
  };
  bool good = read("coordinators", 1, 9, config.coordinators) &&
              read("servers", 1, 64, config.servers) && read("agents", 1, 64, config.agents) &&
              read("slots", 1, 64, config.slots) && read("lanes", 1, 64, config.lanes) &&
              (!json.contains("session_ms") ||
               read("session_ms", kSessionMsMin, kSessionMsMax, config.session_ms)) &&
              read("zookeeper_port", 0, 65535, config.zookeeper_port);
  config.own_disks = FlagOf(json, "own_disks");
  config.secure = FlagOf(json, "secure");
  const Json& ports = MemberOf(json, "http_ports");
  good = good && ports.is_array() && ports.size() == static_cast<std::size_t>(config.coordinators);
  for (std::size_t i = 0; good && i < ports.size(); ++i) {
    good = ports[i].is_number_unsigned() && ports[i] <= 65535;
    if (good) config.http_ports.push_back(ports[i].get<int>());
  }
  if (!good) return Error{ErrorId::kLocalFileDamaged, path.string() + " is damaged"};
  return config;
}

std::string LocalCluster::KeyPath(const std::string& name) const {
  return (directory_ / "keys" / (name + ".key")).string();
}
std::string LocalCluster::TrustedPath() const { return SecurePath("trusted"); }
std::string LocalCluster::SecurePath(const char* file) const {
  return (directory_ / "keys" / file).string();
}

Status LocalCluster::MakeKey(net::Role role, const std::string& name) const {
  std::error_code ignored;
  if (fs::exists(KeyPath(name), ignored)) return Ok();
  net::TrustedKey key;
  key.role = role;
  key.name = name;
  PS_TRY(CreateNodeKey(std::move(key), KeyPath(name), TrustedPath()));
  return Ok();
}

Status LocalCluster::AddKeyFlags(const LocalConfig& config, net::Role role, const std::string& name,
                                 std::vector<std::string>& argv) const {
  if (!config.secure) return Ok();
  PS_TRY(MakeKey(role, name));
  if (std::error_code ignored; !fs::exists(KeyPath("zookeeper"), ignored)) {
    PS_TRY(CreateZooKeeperSecret(KeyPath("zookeeper")));
  }
  argv.insert(argv.end(), {"--key", KeyPath(name), "--trusted", TrustedPath(), "--zookeeper-secret",
                           KeyPath("zookeeper")});
  return Ok();
}

Status LocalCluster::AddApiFlags(const LocalConfig& config, std::vector<std::string>& argv) const {
  if (!config.secure) return Ok();
  std::error_code ignored;
  CertificateOrder order;
  order.hosts = {"127.0.0.1", "::1", "localhost"};
  order.days = kCertificateDays;
  order.certificate = SecurePath("api.crt");
  order.key = SecurePath("api.key");
  order.authority = SecurePath("ca.crt");
  order.authority_key = SecurePath("ca.key");
  if (!fs::exists(order.certificate, ignored)) PS_TRY(MakeCertificate(order));
  if (!fs::exists(SecurePath("operator.token"), ignored)) {
    net::ApiToken token;
    token.role = net::ApiRole::kAdmin;
    token.name = "operator";
    PS_TRY(CreateApiToken(std::move(token), SecurePath("operator.token"), SecurePath("tokens")));
  }
  argv.insert(argv.end(), {"--api-cert", SecurePath("api.crt"), "--api-key", SecurePath("api.key"),
                           "--api-tokens", SecurePath("tokens")});
  return Ok();
}

Result<Context> LocalCluster::OperatorContext(const LocalConfig& config) const {
  Context context;
  context.coordinators = CoordinatorUrls(config);
  context.directory = directory_.string();
  if (!config.secure) return context;
  PS_TRY(MakeKey(net::Role::kOperator, "operator"));
  context.security = {KeyPath("operator"), TrustedPath()};
  context.token_file = SecurePath("operator.token");
  context.access.authorities = SecurePath("ca.crt");
  return context;
}

Status LocalCluster::WriteConfig(const LocalConfig& config) const {
  return WriteFile(directory_ / "cluster.json",
                   JsonText(Json{{"coordinators", config.coordinators},
                                 {"servers", config.servers},
                                 {"agents", config.agents},
                                 {"slots", config.slots},
                                 {"lanes", config.lanes},
                                 {"session_ms", config.session_ms},
                                 {"own_disks", config.own_disks},
                                 {"secure", config.secure},
                                 {"zookeeper_port", config.zookeeper_port},
                                 {"http_ports", config.http_ports}}));
}

Result<bool> LocalCluster::AnyAlive() const {
  const auto processes = PS_TRY(table_.List());
  return std::any_of(processes.begin(), processes.end(),
                     [](const DaemonProcess& process) { return process.IsAlive(); });
}

Result<LocalCluster::Programs> LocalCluster::FindPrograms() const {
  Programs programs;
  std::string missing;
  const auto find = [&](const char* name, std::string& path) {
    path = (fs::path(environment_.program_directory) / name).string();
    if (!IsExecutable(path)) missing += std::string(missing.empty() ? "" : ", ") + name;
  };
  find("coordinator", programs.coordinator);
  find("ps-server", programs.server);
  find("ps-worker", programs.worker);
  find("ps-task", programs.task);
  if (!missing.empty()) {
    return Error{ErrorId::kProgramsMissing, "not found beside ds-cli in " +
                                                environment_.program_directory + ": " + missing +
                                                "; build them (scripts/quickstart does)"};
  }
  if (const std::string home = environment_.variable("JAVA_HOME");
      !home.empty() && IsExecutable(fs::path(home) / "bin" / "java")) {
    programs.java = (fs::path(home) / "bin" / "java").string();
  } else {
    std::istringstream places(environment_.variable("PATH"));
    for (std::string place; programs.java.empty() && std::getline(places, place, ':');) {
      if (!place.empty() && IsExecutable(fs::path(place) / "java")) {
        programs.java = (fs::path(place) / "java").string();
      }
    }
  }
  if (programs.java.empty()) {
    return Error{ErrorId::kZooKeeperMissing,
                 std::string("no java in JAVA_HOME or PATH, which ZooKeeper needs: ") + kPackages};
  }
  std::error_code error;
  for (const char* jar : kJars) {
    if (!fs::exists(jar, error)) {
      return Error{ErrorId::kZooKeeperMissing,
                   std::string(jar) + " is missing, which ZooKeeper needs: " + kPackages};
    }
  }
  return programs;
}

Status LocalCluster::Prepare(const LocalConfig& config) const {
  std::error_code error;
  for (const char* name : {"run", "logs", "zookeeper/data", "checkpoints", "workers"}) {
    fs::create_directories(directory_ / name, error);
    if (error) {
      return Error{ErrorId::kFolderNotMade,
                   "cannot create " + (directory_ / name).string() + ": " + error.message()};
    }
  }
  PS_TRY(WriteFile(
      directory_ / "zookeeper" / "zoo.cfg",
      "tickTime=500\ndataDir=./data\nclientPort=" + std::to_string(config.zookeeper_port) +
          "\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n"
          "maxClientCnxns=0\n4lw.commands.whitelist=srvr,ruok\n"
          "autopurge.snapRetainCount=3\nautopurge.purgeInterval=1\n"));
  PS_TRY(WriteFile(directory_ / "zookeeper" / "log4j.properties",
                   "log4j.rootLogger=WARN, console\n"
                   "log4j.appender.console=org.apache.log4j.ConsoleAppender\n"
                   "log4j.appender.console.target=System.err\n"
                   "log4j.appender.console.layout=org.apache.log4j.PatternLayout\n"
                   "log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c: %m%n\n"));
  return WriteConfig(config);
}

std::string LocalCluster::LogTail(const std::string& name) const {
  const fs::path path = directory_ / "logs" / (name + ".log");
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return "";
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (!error && size > kTailBytes) stream.seekg(static_cast<std::streamoff>(size - kTailBytes));
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(Printable(line));
  std::string text;
  const std::size_t first = lines.size() > kTailLines ? lines.size() - kTailLines : 0;
  for (std::size_t i = first; i < lines.size(); ++i) text += "\n  " + lines[i];
  return path.string() + " ends with:" + text;
}

Status LocalCluster::StartOne(const std::string& name, std::vector<std::string> argv,
                              const fs::path& working_directory) {
  if (environment_.interrupted()) return Error{ErrorCode::kClosed, "interrupted"};
  for (const auto& process : started_) {
    if (process.name == name) return Ok();
  }
  started_.push_back(PS_TRY(table_.Start(DaemonSpec{name, std::move(argv), working_directory,
                                                    directory_ / "logs" / (name + ".log")})));
  return Ok();
}

Status LocalCluster::WaitFor(const std::string& what, std::int64_t patience_ms,
                             const std::function<Result<std::string>()>& ready) {
  const std::int64_t end = environment_.now_ms() + patience_ms;
  std::string missing = "no answer yet";
  bool told = false;
  while (true) {
    for (const auto& process : started_) {
      if (!process.IsAlive()) {
        return Error{ErrorId::kProcessEnded, process.name + " ended while " + what +
                                                 " was waited for; " + LogTail(process.name)};
      }
    }
    missing = PS_TRY(ready());
    if (missing.empty()) return Ok();
    if (environment_.interrupted()) return Error{ErrorCode::kClosed, "interrupted"};
    const std::int64_t left = end - environment_.now_ms();
    if (left <= 0) {
      return Error{ErrorId::kLocalTimeout,
                   "waited " + DurationText(static_cast<double>(patience_ms) / 1000) + " for " +
                       what + ": " + missing + " (logs in " + (directory_ / "logs").string() + ")"};
    }
    if (!told && left < patience_ms - 3000) {
      told = true;
      environment_.err << "waiting for " << what << ": " << missing << std::endl;
    }
    environment_.sleep(kCheckPause);
  }
}

Status LocalCluster::StartAll(const LocalConfig& config, const Programs& programs,
                              std::int64_t patience_ms) {
  std::string class_path = ".";
  for (const char* jar : kJars) class_path += std::string(":") + jar;
  // Everything of ZooKeeper's is named relative to its directory: a path with a colon could not
  // be in the class path.
  PS_TRY(StartOne("zookeeper",
                  {programs.java, "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
                   class_path, "org.apache.zookeeper.server.ZooKeeperServerMain", "zoo.cfg"},
                  directory_ / "zookeeper"));
  PS_TRY(WaitFor("ZooKeeper", patience_ms, [&config]() -> Result<std::string> {
    return std::string(AskZooKeeper(config.zookeeper_port) == "imok"
                           ? ""
                           : "127.0.0.1:" + std::to_string(config.zookeeper_port) +
                                 " does not answer ruok");
  }));

  const std::string zookeeper = "127.0.0.1:" + std::to_string(config.zookeeper_port) + "/ds";
  const std::string session = std::to_string(config.session_ms);
  for (int i = 0; i < config.coordinators; ++i) {
    const std::string name = Numbered("coordinator", i + 1);
    std::vector<std::string> argv = {programs.coordinator,
                                     "--id",
                                     name,
                                     "--zookeeper",
                                     zookeeper,
                                     "--bind",
                                     "127.0.0.1",
                                     "--control-port",
                                     "0",
                                     "--http-port",
                                     std::to_string(config.http_ports[static_cast<std::size_t>(i)]),
                                     "--session-timeout-ms",
                                     session};
    PS_TRY(AddKeyFlags(config, net::Role::kCoordinator, name, argv));
    PS_TRY(AddApiFlags(config, argv));
    PS_TRY(StartOne(name, std::move(argv), directory_));
  }
  std::set<std::string> expected;
  for (int i = 0; i < config.servers; ++i) {
    const std::string name = Numbered("server", i + 1);
    expected.insert(name);
    fs::path checkpoints = directory_ / "checkpoints";
    if (config.own_disks) checkpoints /= name;
    std::vector<std::string> argv = {programs.server,
                                     "--name",
                                     name,
                                     "--zookeeper",
                                     zookeeper,
                                     "--bind",
                                     "127.0.0.1",
                                     "--lanes",
                                     std::to_string(config.lanes),
                                     "--admin-port",
                                     "0",
                                     "--checkpoint-dir",
                                     checkpoints.string(),
                                     "--session-timeout-ms",
                                     session};
    PS_TRY(AddKeyFlags(config, net::Role::kServer, name, argv));
    PS_TRY(StartOne(name, std::move(argv), directory_));
  }
  for (int i = 0; i < config.agents; ++i) {
    const std::string name = Numbered("worker", i + 1);
    expected.insert(name);
    std::vector<std::string> argv = {programs.worker,
                                     "--name",
                                     name,
                                     "--zookeeper",
                                     zookeeper,
                                     "--slots",
                                     std::to_string(config.slots),
                                     "--state-dir",
                                     (directory_ / "workers" / name).string(),
                                     "--task-binary",
                                     programs.task,
                                     "--session-timeout-ms",
                                     session};
    PS_TRY(AddKeyFlags(config, net::Role::kWorker, name, argv));
    PS_TRY(StartOne(name, std::move(argv), directory_));
  }
  Context context = PS_TRY(OperatorContext(config));
  if (config.secure) context.access.token = PS_TRY(net::ReadApiTokenFile(context.token_file));
  const auto ask = [this, context](const std::string& path) -> Json {
    for (const auto& url : context.coordinators) {
      if (environment_.interrupted()) break;
      const auto reply =
          net::HttpCall("GET", url + path, "", std::chrono::milliseconds(1000), context.access);
      if (reply.ok() && reply->status == 200) return Json::parse(reply->body, nullptr, false);
    }
    return Json();
  };
  return WaitFor("all members", patience_ms, [&]() -> Result<std::string> {
    const Json answer = ask("/v1/nodes");
    if (!answer.is_object()) return std::string("no coordinator leads yet");
    std::set<std::string> missing = expected;
    for (const Json& node : MemberOf(answer, "nodes")) {
      const std::string state = TextOf(node, "state");
      if (state == "ready" || state == "unsteady") missing.erase(TextOf(node, "name"));
    }
    std::string text;
    for (const auto& name : missing) text += (text.empty() ? "" : ", ") + name;
    return text.empty() ? text : text + " not registered";
  });
}

Result<net::UniqueFd> LocalCluster::Lock() const {
  std::error_code error;
  fs::create_directories(directory_ / "run", error);
  if (error) {
    return Error{ErrorId::kFolderNotMade,
                 "cannot create " + directory_.string() + ": " + error.message()};
  }
  net::UniqueFd lock(
      ::open((directory_ / "run" / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock.get() < 0 || ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return Error{ErrorId::kLocalBusy,
                 "another `ds-cli local` is at work in " + directory_.string()};
  }
  return lock;
}

Status LocalCluster::Up(const LocalSizes& sizes, std::int64_t patience_ms) {
  const Programs programs = PS_TRY(FindPrograms());
  const net::UniqueFd lock = PS_TRY(Lock());
  return UpLocked(sizes, patience_ms, programs);
}

Status LocalCluster::Repair(const LocalSizes& sizes, std::int64_t patience_ms) {
  const Programs programs = PS_TRY(FindPrograms());
  const net::UniqueFd lock = PS_TRY(Lock());
  std::vector<DaemonProcess> dead;
  for (const auto& process : PS_TRY(table_.List())) {
    (process.IsAlive() ? started_ : dead).push_back(process);
  }
  if (started_.empty()) return UpLocked(sizes, patience_ms, programs);
  const LocalConfig config = PS_TRY(ReadConfig());
  PS_TRY(table_.Stop(dead, std::chrono::milliseconds(0), environment_));
  return StartAll(config, programs, patience_ms);
}

Status LocalCluster::UpLocked(const LocalSizes& sizes, std::int64_t patience_ms,
                              const Programs& programs) {
  const auto old = PS_TRY(table_.List());
  // A process that was killed a moment ago may take a moment to be gone.
  std::string running;
  bool all = true;
  for (const std::int64_t end = environment_.now_ms() + kDyingMs;;
       environment_.sleep(kCheckPause)) {
    running.clear();
    all = true;
    for (const auto& process : old) {
      if (process.IsAlive()) {
        running += (running.empty() ? "" : ", ") + process.name;
      } else {
        all = false;
      }
    }
    if (running.empty() || all || environment_.now_ms() >= end) break;
  }
  if (!running.empty()) {
    return Error{ErrorId::kClusterRuns,
                 "a cluster runs in " + directory_.string() + " (" + running +
                     "); `ds-cli local down` stops it" +
                     (all ? "" : ", `ds-cli local up --repair` starts what died")};
  }
  // Pid files of the dead, and whatever they left running.
  PS_TRY(table_.Stop(old, std::chrono::milliseconds(0), environment_));

  LocalConfig config;
  if (auto before = ReadConfig(); before.ok()) {
    config = std::move(before).value();
  } else if (before.error().code != ErrorCode::kNotFound) {
    return before.error();
  }
  config = ApplySizes(config, sizes);
  {
    // Held together, so that no two get the same one; released just before the daemons start.
    std::vector<net::UniqueFd> held;
    const auto take = [&](int& port) -> Status {
      auto socket = HoldPort(port);
      if (!socket.ok() && port != 0) {
        environment_.err << socket.error().message << "; taking another port" << std::endl;
        port = 0;
        socket = HoldPort(port);
      }
      if (!socket.ok()) return socket.error();
      held.push_back(std::move(socket).value());
      return Ok();
    };
    PS_TRY(take(config.zookeeper_port));
    for (int& port : config.http_ports) PS_TRY(take(port));
  }
  PS_TRY(Prepare(config));
  Status status = StartAll(config, programs, patience_ms);
  if (status.ok()) return status;
  const Status stopped = Down();
  if (!stopped.ok()) return Annotate(status.error(), stopped.error().message + "; ");
  return status;
}

Status LocalCluster::Down() {
  const auto processes = PS_TRY(table_.List());
  Status result = Ok();
  for (const char* kind : {"worker", "server", "coordinator", "zookeeper"}) {
    std::vector<DaemonProcess> group;
    for (const auto& process : processes) {
      if (KindOf(process.name) == kind) group.push_back(process);
    }
    const Status stopped = table_.Stop(group, kStopPatience, environment_);
    if (!stopped.ok()) result = stopped;
  }
  started_.clear();
  return result;
}

Status LocalCluster::Purge() {
  if (PS_TRY(AnyAlive())) {
    return Error{ErrorId::kClusterRuns, "a cluster runs in " + directory_.string()};
  }
  // Only what a cluster made is removed: a wrong --dir must not cost anybody's files.
  std::error_code error;
  for (const char* name :
       {"run", "logs", "zookeeper", "checkpoints", "workers", "keys", "cluster.json"}) {
    fs::remove_all(directory_ / name, error);
    if (error) {
      return Error{ErrorId::kFileNotWritten,
                   "cannot remove " + (directory_ / name).string() + ": " + error.message()};
    }
  }
  if (fs::is_empty(directory_, error) && !error) fs::remove(directory_, error);
  return Ok();
}

}  // namespace ps::cli
