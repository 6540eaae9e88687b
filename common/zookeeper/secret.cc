#include "common/zookeeper/secret.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "common/error_id.h"
#include "common/secret_file.h"

namespace ps::zk {
namespace {

constexpr std::size_t kSecretBytesMax = 1024;

}  // namespace

Result<std::string> ReadSecret(const std::string& path) {
  PS_TRY(CheckSecretFile(path, SecretReaders::kOwner, "secret"));
  std::ifstream file(path);
  std::string line;
  if (!file)
    return Error{ErrorId::kSecretUnreadable, path + ": cannot be read: " + std::strerror(errno)};
  std::getline(file, line);
  std::string more;
  const auto colon = line.find(':');
  const bool printable =
      std::all_of(line.begin(), line.end(), [](unsigned char c) { return std::isgraph(c) != 0; });
  if (colon == std::string::npos || colon == 0 || colon + 1 == line.size() || !printable ||
      line.size() > kSecretBytesMax || (file >> more)) {
    return Error{ErrorId::kZooKeeperSecret, path + ": must have one line, NAME:PASSWORD"};
  }
  return line;
}

}  // namespace ps::zk
