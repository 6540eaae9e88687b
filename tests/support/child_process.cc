#include "tests/support/child_process.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "tests/support/temp_directory.h"

namespace ps::test {

namespace {

using std::chrono::milliseconds;

Error SystemError(const std::string& what, int error) {
  return Error{ErrorCode::kIo, what + ": " + std::strerror(error)};
}

int ExitOf(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

// Between fork and exec: nothing that allocates or locks. Reports errno through `report`.
[[noreturn]] void Become(char* const* argv, char* const* environment, const char* directory,
                         int output, int report, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(126);  // it died before prctl
  bool good = directory[0] == '\0' || chdir(directory) == 0;
  if (good && output >= 0) good = dup2(output, 1) >= 0 && dup2(output, 2) >= 0;
  if (good) execvpe(argv[0], argv, environment);
  const int error = errno;
  (void)!write(report, &error, sizeof(error));
  _exit(127);
}

}  // namespace

ChildProcess::ChildProcess(Adopted child) : pid_(child.pid), output_(std::move(child.output)) {}

Result<std::unique_ptr<ChildProcess>> ChildProcess::Start(const Options& options) {
  if (options.argv.empty()) return Error{ErrorCode::kUsage, "no program to start"};
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    if (options.environment.count(text.substr(0, text.find('='))) == 0) variables.push_back(text);
  }
  for (const auto& entry : options.environment) {
    variables.push_back(entry.first + "=" + entry.second);
  }
  std::vector<std::string> words = options.argv;
  std::vector<char*> argv;
  std::vector<char*> environment;
  for (std::string& word : words) argv.push_back(word.data());
  for (std::string& variable : variables) environment.push_back(variable.data());
  argv.push_back(nullptr);
  environment.push_back(nullptr);

  int output = -1;
  if (!options.output.empty()) {
    output = open(options.output.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (output < 0) return SystemError(options.output.string(), errno);
  }
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) {
    const int error = errno;
    if (output >= 0) close(output);
    return SystemError("pipe", error);
  }
  const std::string directory = options.directory.string();
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    Become(argv.data(), environment.data(), directory.c_str(), output, report[1], parent);
  }
  const int fork_error = errno;
  close(report[1]);
  if (output >= 0) close(output);
  int error = 0;
  const ssize_t got = pid < 0 ? 0 : read(report[0], &error, sizeof(error));
  close(report[0]);
  if (pid < 0) return SystemError("fork", fork_error);
  Adopted adopted;
  adopted.pid = pid;
  adopted.output = options.output;
  auto child = std::make_unique<ChildProcess>(std::move(adopted));
  if (got == static_cast<ssize_t>(sizeof(error))) {
    child->Wait(milliseconds(5000));
    return SystemError(options.argv[0], error);
  }
  return child;
}

ChildProcess::~ChildProcess() { Kill(); }

bool ChildProcess::Running() { return !Wait(milliseconds(0)).has_value(); }

std::optional<int> ChildProcess::Wait(milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!exit_) {
    int status = 0;
    const pid_t got = waitpid(pid_, &status, WNOHANG);
    if (got == pid_) {
      exit_ = ExitOf(status);
    } else if (got < 0 && errno != EINTR) {
      exit_ = 127;  // somebody else reaped it
    } else if (std::chrono::steady_clock::now() >= end) {
      return std::nullopt;
    } else {
      std::this_thread::sleep_for(milliseconds(5));
    }
  }
  return exit_;
}

void ChildProcess::Signal(int signal) {
  if (Running()) kill(pid_, signal);
}

void ChildProcess::SignalGroup(int signal) {
  // The child makes the group itself, perhaps not yet.
  if (kill(-pid_, signal) != 0 && !exit_) kill(pid_, signal);
}

void ChildProcess::Kill() {
  if (std::exchange(killed_, true)) return;
  const bool ended = !Running();
  // What the child started may outlive it; the group keeps its number until all are gone.
  SignalGroup(SIGKILL);
  if (!ended) Wait(milliseconds(10'000));
}

void ChildProcess::Stop() {
  if (!Running()) return;
  SignalGroup(SIGSTOP);
  // Threads that run on other processors go on for a moment: what is sent meanwhile is handled.
  siginfo_t info{};
  while (waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WEXITED | WNOWAIT) < 0 &&
         errno == EINTR) {
  }
}
void ChildProcess::Continue() { SignalGroup(SIGCONT); }

int ChildProcess::Terminate(milliseconds grace) {
  Signal(SIGTERM);
  if (!Wait(grace)) Kill();
  return exit_.value_or(-1);
}

std::string ChildProcess::Output() const {
  std::ifstream file(output_, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Result<Finished> RunProgram(ChildProcess::Options options, milliseconds deadline) {
  const TempDirectory directory("output");
  if (options.output.empty()) options.output = directory / "output.txt";
  const auto child = PS_TRY(ChildProcess::Start(options));
  const auto exit = child->Wait(deadline);
  if (!exit) {
    child->Kill();
    return Error{ErrorCode::kTimeout, options.argv[0] + " did not end within " +
                                          std::to_string(deadline.count()) + " ms; it printed:\n" +
                                          child->Output()};
  }
  Finished finished;
  finished.exit = *exit;
  finished.output = child->Output();
  return finished;
}

Result<int> FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return SystemError("socket", errno);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const bool good =
      bind(fd, generic, sizeof(address)) == 0 && getsockname(fd, generic, &length) == 0;
  const int error = errno;
  close(fd);
  if (!good) return SystemError("a free port", error);
  return static_cast<int>(ntohs(address.sin_port));
}

}  // namespace ps::test
