#include "common/net/process.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "common/check.h"
#include "common/net/unique_fd.h"

extern char** environ;

namespace ps::net {

namespace asio = boost::asio;

namespace {

constexpr int kInheritedAs = 3;
// Where the kernel has no pidfd_open: how often a child is asked after.
constexpr Milliseconds kPollPeriod{20};

// Ours, with the additions in place of variables of the same name.
std::vector<std::string> Environment(
    const std::vector<std::pair<std::string, std::string>>& additions) {
  std::vector<std::string> result;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    const bool replaced = std::any_of(additions.begin(), additions.end(),
                                      [&name](const auto& added) { return added.first == name; });
    if (!replaced) result.push_back(text);
  }
  for (const auto& added : additions) result.push_back(added.first + "=" + added.second);
  return result;
}

// The candidates for execve, found before fork: looking through PATH afterwards would allocate.
std::vector<std::string> Candidates(const std::string& program) {
  if (program.find('/') != std::string::npos) return {program};
  const char* const path = std::getenv("PATH");
  const std::string folders = path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin";
  std::vector<std::string> result;
  for (std::size_t begin = 0; begin <= folders.size();) {
    const auto end = std::min(folders.find(':', begin), folders.size());
    const std::string folder = folders.substr(begin, end - begin);
    result.push_back((folder.empty() ? "." : folder) + "/" + program);
    begin = end + 1;
  }
  return result;
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  result.reserve(texts.size() + 1);
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

struct ChildPlan {
  char* const* candidates;
  char* const* argv;
  char* const* environment;
  const char* working_directory;  // nullptr: ours
  const cpu_set_t* cpus;          // nullptr: ours
  int inherited_fd;
  int output_fd;
  int null_fd;
  int error_fd;
  pid_t parent;
};

enum class Step : int { kPrepare = 1, kDirectory, kExec };

struct Failure {
  Step step;
  int error;
};

[[noreturn]] void ReportAndExit(int fd, Step step) {
  const Failure failure{step, errno};
  const auto ignored = ::write(fd, &failure, sizeof(failure));
  (void)ignored;
  ::_exit(127);
}

// Runs in the child between fork and exec, where other threads' locks may be held for ever:
// nothing but async-signal-safe calls, no allocation, no C++ library.
[[noreturn]] void BecomeChild(const ChildPlan& plan) {
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) ReportAndExit(plan.error_fd, Step::kPrepare);
  // The parent may have died before the line above.
  if (::getppid() != plan.parent) ::_exit(127);
  (void)::setpgid(0, 0);

  for (int signal = 1; signal < NSIG; ++signal) {
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    (void)::sigaction(signal, &action, nullptr);
  }
  sigset_t none;
  ::sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);

  // First all that will be dup2'ed from goes above the numbers that are dup2'ed to.
  const int error_fd = ::fcntl(plan.error_fd, F_DUPFD_CLOEXEC, 16);
  if (error_fd < 0) ReportAndExit(plan.error_fd, Step::kPrepare);
  int inherited = -1;
  int output = -1;
  int null = -1;
  if (plan.inherited_fd >= 0) {
    inherited = ::fcntl(plan.inherited_fd, F_DUPFD_CLOEXEC, 16);
    if (inherited < 0) ReportAndExit(error_fd, Step::kPrepare);
  }
  if (plan.output_fd >= 0) {
    output = ::fcntl(plan.output_fd, F_DUPFD_CLOEXEC, 16);
    if (output < 0) ReportAndExit(error_fd, Step::kPrepare);
  }
  null = ::fcntl(plan.null_fd, F_DUPFD_CLOEXEC, 16);
  if (null < 0 || ::dup2(null, STDIN_FILENO) < 0) ReportAndExit(error_fd, Step::kPrepare);
  if (output >= 0 && (::dup2(output, STDOUT_FILENO) < 0 || ::dup2(output, STDERR_FILENO) < 0)) {
    ReportAndExit(error_fd, Step::kPrepare);
  }
  if (inherited >= 0 && ::dup2(inherited, kInheritedAs) < 0) {
    ReportAndExit(error_fd, Step::kPrepare);
  }
  // Whatever a library opened without close-on-exec. Old kernels lack the call; ours all have it
  // set.
#ifdef SYS_close_range
  constexpr unsigned kCloseOnExec = 4;  // CLOSE_RANGE_CLOEXEC
  (void)::syscall(SYS_close_range, inherited >= 0 ? kInheritedAs + 1u : 3u, ~0u, kCloseOnExec);
#endif
  if (plan.cpus != nullptr) (void)::sched_setaffinity(0, sizeof(*plan.cpus), plan.cpus);
  if (plan.working_directory != nullptr && ::chdir(plan.working_directory) != 0) {
    ReportAndExit(error_fd, Step::kDirectory);
  }
  // Of all candidates the most telling error: "permission denied" rather than "not found".
  int error = ENOENT;
  for (char* const* candidate = plan.candidates; *candidate != nullptr; ++candidate) {
    ::execve(*candidate, plan.argv, plan.environment);
    if (errno != ENOENT && errno != ENOTDIR) error = errno;
  }
  errno = error;
  ReportAndExit(error_fd, Step::kExec);
}

ExitStatus Decode(int status) {
  ExitStatus result;
  if (WIFSIGNALED(status)) {
    result.signal = WTERMSIG(status);
  } else {
    result.code = WEXITSTATUS(status);
  }
  return result;
}

int OpenPidFd(pid_t pid) {
#ifdef SYS_pidfd_open
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
#else
  (void)pid;
  errno = ENOSYS;
  return -1;
#endif
}

// Waits without end only for a child that has ended or was sent SIGKILL.
int Reap(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

}  // namespace

std::string ExitStatus::ToString() const {
  if (signal == 0) return "exited with status " + std::to_string(code);
  const char* const name = ::sigdescr_np(signal);
  return "killed by signal " + std::to_string(signal) +
         (name != nullptr ? std::string(" (") + name + ")" : std::string());
}

struct ChildProcess::State : std::enable_shared_from_this<ChildProcess::State> {
  State(Loop& owner, pid_t child) : loop(owner), pid(child), pidfd(owner.context()), poll(owner) {}

  // `fd`: of pidfd_open, or -1.
  void Watch(int fd) {
    boost::system::error_code error;
    if (fd >= 0) pidfd.assign(fd, error);
    if (fd >= 0 && !error) {
      pidfd.async_wait(asio::posix::stream_descriptor::wait_read,
                       [self = shared_from_this()](const boost::system::error_code& failed) {
                         if (!failed && self->running) self->Ended();
                       });
      return;
    }
    if (fd >= 0) ::close(fd);
    poll.Every(kPollPeriod, [this] { Ended(); });
  }

  void Ended() {
    int status = 0;
    const pid_t reaped = ::waitpid(pid, &status, WNOHANG);
    if (reaped == 0 || (reaped < 0 && errno == EINTR)) return;
    const auto self = shared_from_this();
    running = false;
    poll.Cancel();
    boost::system::error_code ignored;
    pidfd.close(ignored);
    exit = Decode(status);
    Deliver();
  }

  void Deliver() {
    if (!on_exit || running || dropped) return;
    const auto call = std::exchange(on_exit, nullptr);
    call(exit);
  }

  Loop& loop;
  const pid_t pid;
  asio::posix::stream_descriptor pidfd;
  Timer poll;
  bool running = true;
  bool dropped = false;
  ExitStatus exit;
  std::function<void(ExitStatus)> on_exit;
};

Result<std::unique_ptr<ChildProcess>> ChildProcess::Spawn(Loop& loop, const ProcessSpec& spec) {
  loop.AssertInLoop();
  if (spec.argv.empty() || spec.argv[0].empty()) {
    return Error{ErrorCode::kUsage, "a process without a program"};
  }
  std::vector<std::string> arguments = spec.argv;
  std::vector<std::string> environment = Environment(spec.environment);
  std::vector<std::string> candidates = Candidates(spec.argv[0]);
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(environment);
  const std::vector<char*> programs = Pointers(candidates);

  int pipe_fds[2];
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null.valid() || ::pipe2(pipe_fds, O_CLOEXEC) != 0) {
    return Error{ErrorCode::kIo, "starting " + spec.argv[0] + ": " + std::strerror(errno)};
  }
  const UniqueFd error_read(pipe_fds[0]);
  UniqueFd error_write(pipe_fds[1]);

  ChildPlan plan{};
  plan.candidates = programs.data();
  plan.argv = argv.data();
  plan.environment = envp.data();
  plan.working_directory =
      spec.working_directory.empty() ? nullptr : spec.working_directory.c_str();
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  for (const int cpu : spec.cpus) {
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &cpus);
  }
  if (!spec.cpus.empty()) plan.cpus = &cpus;
  plan.inherited_fd = spec.inherited_fd;
  plan.output_fd = spec.output_fd;
  plan.null_fd = null.get();
  plan.error_fd = error_write.get();
  plan.parent = ::getpid();

  // No signal handler of ours may run in the child.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  if (pid == 0) BecomeChild(plan);
  const int fork_error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) {
    return Error{ErrorCode::kIo, "starting " + spec.argv[0] + ": " + std::strerror(fork_error)};
  }
  error_write.Reset();

  // Ends when exec closes the child's side, so within the time an exec takes.
  Failure failure{};
  ssize_t got;
  do {
    got = ::read(error_read.get(), &failure, sizeof(failure));
  } while (got < 0 && errno == EINTR);
  if (got == static_cast<ssize_t>(sizeof(failure))) {
    (void)Reap(pid);
    const auto code = failure.error == ENOENT   ? ErrorCode::kNotFound
                      : failure.error == EACCES ? ErrorCode::kDenied
                                                : ErrorCode::kIo;
    const std::string what = failure.step == Step::kDirectory ? spec.working_directory
                             : failure.step == Step::kExec    ? spec.argv[0]
                                                              : "the child of " + spec.argv[0];
    return Error{code, "starting " + what + ": " + std::strerror(failure.error)};
  }
  auto state = std::make_shared<State>(loop, pid);
  state->Watch(OpenPidFd(pid));
  return std::make_unique<ChildProcess>(Private(), std::move(state));
}

ChildProcess::ChildProcess(Private, std::shared_ptr<State> state) : state_(std::move(state)) {}

ChildProcess::~ChildProcess() {
  State& state = *state_;
  state.loop.AssertInLoop();
  state.dropped = true;
  if (!state.running) return;
  state.running = false;
  state.poll.Cancel();
  ::kill(-state.pid, SIGKILL);
  ::kill(state.pid, SIGKILL);
  (void)Reap(state.pid);
  boost::system::error_code ignored;
  state.pidfd.close(ignored);
}

void ChildProcess::OnExit(std::function<void(ExitStatus)> fn) {
  state_->loop.AssertInLoop();
  state_->on_exit = std::move(fn);
  if (!state_->running) state_->loop.Post([state = state_] { state->Deliver(); });
}

Status ChildProcess::Signal(int signal) {
  state_->loop.AssertInLoop();
  // While it is not reaped the pid stays its own.
  if (!state_->running || ::kill(state_->pid, signal) != 0) {
    return Error{ErrorCode::kNotFound, "process " + std::to_string(state_->pid) + " has ended"};
  }
  return Ok();
}

Status ChildProcess::SignalGroup(int signal) {
  state_->loop.AssertInLoop();
  if (!state_->running || ::kill(-state_->pid, signal) != 0) {
    return Error{ErrorCode::kNotFound,
                 "process group " + std::to_string(state_->pid) + " has ended"};
  }
  return Ok();
}

pid_t ChildProcess::pid() const { return state_->pid; }
bool ChildProcess::running() const { return state_->running; }

}  // namespace ps::net
