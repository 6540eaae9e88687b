#include "cli/process_table.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "common/error_id.h"
#include "common/net/unique_fd.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds kPause{50};
constexpr std::int64_t kKillPatienceMs = 5'000;

struct ProcStat {
  char state = '?';
  pid_t session = 0;
  std::uint64_t start_time = 0;
};

std::optional<ProcStat> ReadStat(pid_t pid) {
  std::ifstream stream("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(stream, text)) return std::nullopt;
  // The name in parentheses may hold anything; the fields after it do not.
  const auto end = text.rfind(')');
  if (end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(end + 1));
  ProcStat stat;
  std::string field;
  // Fields 3 (state), 6 (session) and 22 (start time) of proc(5).
  for (int number = 3; number <= 22 && fields >> field; ++number) {
    if (number == 3) stat.state = field[0];
    if (number == 6) stat.session = static_cast<pid_t>(std::strtol(field.c_str(), nullptr, 10));
    if (number == 22) {
      stat.start_time = std::strtoull(field.c_str(), nullptr, 10);
      return stat;
    }
  }
  return std::nullopt;
}

// Our programs in the sessions that these daemons led. A pid that another process has now says
// nothing about sessions any more: the kernel gives none away while its session has members.
std::vector<pid_t> LeftBehind(const std::vector<DaemonProcess>& processes,
                              const fs::path& program_directory) {
  std::vector<pid_t> found;
  std::set<pid_t> sessions;
  for (const auto& process : processes) {
    const auto stat = ReadStat(process.pid);
    const bool other = stat && stat->start_time != process.start_time;
    if (process.pid > 1 && process.start_time > 0 && !other) sessions.insert(process.pid);
  }
  if (sessions.empty()) return found;
  DIR* proc = ::opendir("/proc");
  if (proc == nullptr) return found;
  while (const dirent* entry = ::readdir(proc)) {
    pid_t pid = 0;
    const char* end = entry->d_name + std::strlen(entry->d_name);
    const auto [rest, failure] = std::from_chars(entry->d_name, end, pid);
    if (failure != std::errc() || rest != end) continue;
    const auto stat = ReadStat(pid);
    if (!stat || stat->state == 'Z' || stat->state == 'X') continue;
    if (sessions.count(stat->session) == 0) continue;
    std::error_code error;
    const fs::path program = fs::read_symlink("/proc/" + std::to_string(pid) + "/exe", error);
    if (!error && program.parent_path() == program_directory) found.push_back(pid);
  }
  (void)::closedir(proc);
  return found;
}

// In the child, between fork and exec: only calls that are safe there.
[[noreturn]] void BecomeDaemon(char* const* argv, const char* directory, int log, int null,
                               int report) {
  (void)::setsid();
  sigset_t none;
  (void)sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int signal_number : {SIGINT, SIGTERM, SIGPIPE, SIGHUP, SIGQUIT}) {
    (void)::signal(signal_number, SIG_DFL);
  }
  int failure = 0;
  if (::chdir(directory) != 0 || ::dup2(null, STDIN_FILENO) < 0 || ::dup2(log, STDOUT_FILENO) < 0 ||
      ::dup2(log, STDERR_FILENO) < 0) {
    failure = errno;
  } else {
    // What ds-cli itself inherited (a pipe of its caller) would be held open for days.
    (void)::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    (void)::execv(argv[0], argv);
    failure = errno;
  }
  (void)!::write(report, &failure, sizeof failure);
  ::_exit(127);
}

}  // namespace

std::optional<std::uint64_t> StartTimeOf(pid_t pid) {
  const auto stat = ReadStat(pid);
  if (!stat || stat->state == 'Z' || stat->state == 'X') return std::nullopt;
  return stat->start_time;
}

bool DaemonProcess::IsAlive() const {
  // A child of ours that ended stays a zombie until it is waited for.
  (void)::waitpid(pid, nullptr, WNOHANG);
  return pid > 0 && StartTimeOf(pid) == start_time;
}

fs::path ProcessTable::PidFile(const std::string& name) const {
  return directory_ / (name + ".pid");
}

Result<DaemonProcess> ProcessTable::Start(const DaemonSpec& spec) const {
  const auto failed = [&spec](const std::string& what, int number) {
    return Error{ErrorCode::kIo,
                 "cannot start " + spec.name + ": " + what + ": " + std::strerror(number)};
  };
  const net::UniqueFd log(
      ::open(spec.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640));
  if (log.get() < 0) return failed(spec.log.string(), errno);
  const net::UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (null.get() < 0) return failed("/dev/null", errno);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return failed("pipe", errno);
  const net::UniqueFd report(ends[0]);
  net::UniqueFd report_writer(ends[1]);

  std::vector<char*> argv;
  for (const auto& word : spec.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const std::string directory = spec.working_directory.string();
  const pid_t pid = ::fork();
  if (pid < 0) return failed("fork", errno);
  if (pid == 0) {
    BecomeDaemon(argv.data(), directory.c_str(), log.get(), null.get(), report_writer.get());
  }
  report_writer.Reset();
  DaemonProcess process{spec.name, pid, StartTimeOf(pid).value_or(0)};
  {
    std::ofstream file(PidFile(spec.name), std::ios::trunc);
    file << process.pid << " " << process.start_time << "\n";
    file.flush();
    if (!file) {
      (void)::kill(pid, SIGKILL);
      return failed(PidFile(spec.name).string(), errno);
    }
  }
  // Closed without a byte when the exec succeeds.
  int failure = 0;
  ssize_t got = 0;
  do {
    got = ::read(report.get(), &failure, sizeof failure);
  } while (got < 0 && errno == EINTR);
  if (got == static_cast<ssize_t>(sizeof failure)) {
    (void)::waitpid(pid, nullptr, 0);
    std::error_code ignored;
    fs::remove(PidFile(spec.name), ignored);
    return failed(spec.argv[0], failure);
  }
  return process;
}

Result<std::vector<DaemonProcess>> ProcessTable::List() const {
  std::vector<DaemonProcess> processes;
  std::error_code error;
  if (!fs::is_directory(directory_, error)) return processes;
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    if (entry.path().extension() != ".pid") continue;
    std::ifstream file(entry.path());
    DaemonProcess process;
    process.name = entry.path().stem().string();
    // A file that was cut by a crash names no process of ours.
    if (!(file >> process.pid >> process.start_time)) process.pid = 0;
    processes.push_back(process);
  }
  if (error) {
    return Error{ErrorId::kFileUnreadable,
                 "cannot list " + directory_.string() + ": " + error.message()};
  }
  std::sort(processes.begin(), processes.end(),
            [](const DaemonProcess& a, const DaemonProcess& b) { return a.name < b.name; });
  return processes;
}

Status ProcessTable::Stop(const std::vector<DaemonProcess>& processes,
                          std::chrono::milliseconds patience, Environment& environment) const {
  const auto any_alive = [&processes] {
    return std::any_of(processes.begin(), processes.end(),
                       [](const DaemonProcess& process) { return process.IsAlive(); });
  };
  // Not cut short by an interruption: what was begun here is finished, within its deadline.
  const auto wait_until = [&environment](std::int64_t end, const auto& done) {
    while (!done() && environment.now_ms() < end) {
      const timespec pause{0, static_cast<long>(kPause.count()) * 1'000'000};
      (void)::nanosleep(&pause, nullptr);
    }
  };
  for (const auto& process : processes) {
    if (!process.IsAlive()) continue;
    (void)::kill(process.pid, SIGTERM);
    (void)::kill(process.pid, SIGCONT);  // a stopped one must see the signal
  }
  wait_until(environment.now_ms() + patience.count(), [&] { return !any_alive(); });
  for (const auto& process : processes) {
    if (process.IsAlive()) (void)::kill(process.pid, SIGKILL);
  }
  wait_until(environment.now_ms() + kKillPatienceMs, [&] { return !any_alive(); });
  wait_until(environment.now_ms() + kKillPatienceMs, [&] {
    const auto left = LeftBehind(processes, environment.program_directory);
    for (const pid_t pid : left) (void)::kill(pid, SIGKILL);
    return left.empty();
  });
  std::string survivors;
  for (const auto& process : processes) {
    if (process.IsAlive()) {
      survivors += " " + process.name + " (pid " + std::to_string(process.pid) + ")";
      continue;
    }
    std::error_code ignored;
    fs::remove(PidFile(process.name), ignored);
  }
  if (!survivors.empty()) {
    return Error{ErrorId::kProcessesSurvive, "these processes do not end:" + survivors};
  }
  return Ok();
}

}  // namespace ps::cli
