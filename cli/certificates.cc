#include "cli/certificates.h"

#include <utility>

#include "cli/whole_file.h"
#include "common/error_id.h"
#include "common/net/certificates.h"
#include "common/net/list_file.h"
#include "common/secret_file.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kAuthorityDays = 3650;

Result<std::string> ReadKey(const fs::path& path) {
  PS_TRY(CheckSecretFile(path.string(), SecretReaders::kOwnerAndGroup, "secret key"));
  std::string text = PS_TRY(net::ReadListFile(path.string()));
  if (text.empty()) return Error{ErrorId::kCertificateFile, path.string() + ": is empty"};
  return text;
}

struct Authority {
  net::PemPair pair;
  bool fresh = false;
};
Result<Authority> FindAuthority(const CertificateOrder& order) {
  std::error_code ignored;
  const bool there = fs::exists(order.authority, ignored);
  if (there != fs::exists(order.authority_key, ignored)) {
    return Error{ErrorId::kAuthorityIncomplete,
                 (there ? order.authority_key : order.authority).string() + ": is not there, but " +
                     (there ? order.authority : order.authority_key).string() +
                     " is; an authority is both"};
  }
  if (!there) return Authority{PS_TRY(net::MakeAuthority(kAuthorityDays)), true};
  const std::string key = PS_TRY(ReadKey(order.authority_key));
  return Authority{{PS_TRY(net::ReadListFile(order.authority.string())), key}, false};
}

}  // namespace

Result<MadeCertificate> MakeCertificate(const CertificateOrder& order) {
  const net::UniqueFd lock = PS_TRY(LockFolderOf(order.authority));
  const Authority authority = PS_TRY(FindAuthority(order));
  std::error_code ignored;
  const bool has_key = fs::exists(order.key, ignored);
  const std::string key = has_key ? PS_TRY(ReadKey(order.key)) : std::string();
  const auto made = net::MakeServerCertificate(authority.pair, order.hosts, order.days, key);
  if (!made.ok()) {
    const bool of_files = made.error().code == ErrorCode::kInvalid;
    const std::string files = order.authority.string() + ", " + order.authority_key.string() +
                              (has_key ? ", " + order.key.string() : "") + ": ";
    return of_files ? Annotate(made.error(), files) : made.error();
  }
  if (authority.fresh) {
    PS_TRY(WriteWhole(order.authority_key, authority.pair.key, 0600, /*fresh=*/true));
    PS_TRY(WriteWhole(order.authority, authority.pair.certificate, 0644, /*fresh=*/true));
  }
  if (!has_key) PS_TRY(WriteWhole(order.key, made->pair.key, 0600, /*fresh=*/true));
  PS_TRY(WriteWhole(order.certificate, made->pair.certificate, 0644, /*fresh=*/false));
  return MadeCertificate{made->until_ms, authority.fresh};
}

}  // namespace ps::cli
