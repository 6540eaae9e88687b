#include "cli/whole_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "common/error_id.h"
#include "common/net/list_file.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

Error Failed(const fs::path& path, const char* what) {
  return Error{errno == EACCES || errno == EPERM ? ErrorId::kFileDenied : ErrorId::kFileNotWritten,
               path.string() + ": cannot be " + what + ": " + std::strerror(errno)};
}

}  // namespace

Status WriteWhole(const fs::path& path, const std::string& text, mode_t mode, bool fresh) {
  std::error_code ignored;
  if (path.has_parent_path()) fs::create_directories(path.parent_path(), ignored);
  const fs::path temporary = path.string() + "." + std::to_string(::getpid()) + ".tmp";
  {
    const net::UniqueFd file(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    if (!file.valid()) return Failed(temporary, "made");
    std::size_t written = 0;
    while (written < text.size()) {
      const ssize_t count = ::write(file.get(), text.data() + written, text.size() - written);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) break;
      written += static_cast<std::size_t>(count);
    }
    if (written < text.size() || ::fchmod(file.get(), mode) != 0 || ::fsync(file.get()) != 0) {
      const Error error = Failed(temporary, "written");
      ::unlink(temporary.c_str());
      return error;
    }
  }
  // A link fails where something is already; a rename replaces it.
  const int done =
      fresh ? ::link(temporary.c_str(), path.c_str()) : ::rename(temporary.c_str(), path.c_str());
  if (done != 0) {
    const Error error = errno == EEXIST
                            ? Error{ErrorId::kSecretExists, path.string() +
                                                                ": is there already; a key "
                                                                "is not overwritten"}
                            : Failed(path, "made");
    ::unlink(temporary.c_str());
    return error;
  }
  if (fresh) ::unlink(temporary.c_str());
  return Ok();
}

Result<std::string> ReadOrBegin(const fs::path& list, const std::string& heading) {
  std::error_code ignored;
  if (!fs::exists(list, ignored)) return heading;
  std::string text = PS_TRY(net::ReadListFile(list.string()));
  if (!text.empty() && text.back() != '\n') text += '\n';
  return text;
}

std::string WithoutEntries(const std::string& text, const std::vector<std::string>& words) {
  std::string kept;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const bool goes = std::any_of(words.begin(), words.end(), [&line](const std::string& word) {
      return line.find(word) != std::string::npos && line.front() != '#';
    });
    if (!goes) kept += line + "\n";
  }
  return kept;
}

Status WriteSecretAndList(const fs::path& secret_file, const std::string& secret,
                          const fs::path& list_file, const std::string& list) {
  PS_TRY(WriteWhole(secret_file, secret, 0600, /*fresh=*/true));
  const Status added = WriteWhole(list_file, list, 0644, /*fresh=*/false);
  std::error_code ignored;
  if (!added.ok()) fs::remove(secret_file, ignored);
  return added;
}

Result<net::UniqueFd> LockFolderOf(const fs::path& path) {
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code ignored;
  fs::create_directories(folder, ignored);
  net::UniqueFd lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.valid()) return Failed(folder, "opened");
  if (::flock(lock.get(), LOCK_EX) != 0) return Failed(folder, "locked");
  return lock;
}

}  // namespace ps::cli
