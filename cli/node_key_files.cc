#include "cli/node_key_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <utility>

#include "common/net/unique_fd.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

Error Failed(const fs::path& path, const char* what) {
  return Error{errno == EACCES || errno == EPERM ? ErrorCode::kDenied : ErrorCode::kIo,
               path.string() + ": cannot be " + what + ": " + std::strerror(errno)};
}

fs::path FolderOf(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Durable under its name, or not there at all. kConflict: `fresh` and there is one.
Status WriteWhole(const fs::path& path, const std::string& text, mode_t mode, bool fresh) {
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
                            ? Error{ErrorCode::kConflict, path.string() +
                                                              ": is there already; a key "
                                                              "is not overwritten"}
                            : Failed(path, "made");
    ::unlink(temporary.c_str());
    return error;
  }
  if (fresh) ::unlink(temporary.c_str());
  return Ok();
}

// One command at a time in the folder of the list.
Result<net::UniqueFd> LockFolder(const fs::path& trusted) {
  const fs::path folder = FolderOf(trusted);
  std::error_code ignored;
  fs::create_directories(folder, ignored);
  net::UniqueFd lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.valid()) return Failed(folder, "opened");
  if (::flock(lock.get(), LOCK_EX) != 0) return Failed(folder, "locked");
  return lock;
}

// As it is, and what it says; nothing if there is no list yet.
struct List {
  std::string text;
  net::TrustedKeys keys;
};
Result<List> ReadList(const fs::path& trusted) {
  List list;
  std::error_code ignored;
  if (!fs::exists(trusted, ignored)) {
    list.text =
        "# Who may talk to this cluster: the same list on every node.\n"
        "# ROLE NAME PUBLIC-KEY [until YYYY-MM-DD]\n";
    return list;
  }
  list.keys = PS_TRY(net::TrustedKeys::ReadFile(trusted.string()));
  std::ifstream file(trusted, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  list.text = text.str();
  if (!list.text.empty() && list.text.back() != '\n') list.text += '\n';
  return list;
}

}  // namespace

Result<net::TrustedKey> CreateNodeKey(net::TrustedKey key, const fs::path& key_file,
                                      const fs::path& trusted) {
  const net::UniqueFd lock = PS_TRY(LockFolder(trusted));
  List list = PS_TRY(ReadList(trusted));
  const auto& known = list.keys.keys();
  const bool taken = std::any_of(known.begin(), known.end(), [&](const auto& entry) {
    return entry.second.role == key.role && entry.second.name == key.name;
  });
  if (taken) {
    return Error{ErrorCode::kConflict, trusted.string() + ": has a " + net::RoleName(key.role) +
                                           " " + key.name + " already; `ds-cli auth revoke " +
                                           key.name + "` takes it away"};
  }
  const net::KeyPair pair = PS_TRY(net::MakeKeyPair());
  key.public_key = pair.public_key;
  list.text += net::TrustedLine(key);
  // What cannot be read again is not written.
  PS_TRY(net::TrustedKeys::Parse(list.text));
  std::error_code ignored;
  fs::create_directories(FolderOf(key_file), ignored);
  PS_TRY(WriteWhole(key_file, net::KeyFileText(pair), 0600, /*fresh=*/true));
  const Status added = WriteWhole(trusted, list.text, 0644, /*fresh=*/false);
  if (!added.ok()) {
    fs::remove(key_file, ignored);
    return added.error();
  }
  return key;
}

Status CreateZooKeeperSecret(const fs::path& file) {
  const net::KeyPair drawn = PS_TRY(net::MakeKeyPair());
  std::error_code ignored;
  fs::create_directories(FolderOf(file), ignored);
  return WriteWhole(file, "ds:" + drawn.secret_key + "\n", 0600, /*fresh=*/true);
}

Result<std::vector<net::TrustedKey>> RevokeNodeKeys(const std::string& name,
                                                    const std::vector<net::Role>& roles,
                                                    const fs::path& trusted) {
  const net::UniqueFd lock = PS_TRY(LockFolder(trusted));
  const List list = PS_TRY(ReadList(trusted));
  std::vector<net::TrustedKey> gone;
  for (const auto& [public_key, key] : list.keys.keys()) {
    const bool of_role =
        roles.empty() || std::find(roles.begin(), roles.end(), key.role) != roles.end();
    if (key.name == name && of_role) gone.push_back(key);
  }
  if (gone.empty()) {
    return Error{ErrorCode::kNotFound, trusted.string() + ": nobody of the name " + name +
                                           " is trusted (`ds-cli auth list`)"};
  }
  std::string kept;
  std::istringstream lines(list.text);
  for (std::string line; std::getline(lines, line);) {
    const bool goes = std::any_of(gone.begin(), gone.end(), [&](const net::TrustedKey& key) {
      return line.find(key.public_key) != std::string::npos && line.front() != '#';
    });
    if (!goes) kept += line + "\n";
  }
  PS_TRY(WriteWhole(trusted, kept, 0644, /*fresh=*/false));
  return gone;
}

}  // namespace ps::cli
