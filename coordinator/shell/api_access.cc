#include "coordinator/shell/api_access.h"

#include <spdlog/spdlog.h>

#include <cctype>
#include <string_view>
#include <utility>

#include "common/error_id.h"
#include "common/net/list_file.h"
#include "common/net/this_host.h"
#include "coordinator/shell/api_roles.h"
#include "coordinator/shell/coordinator.h"

namespace ps::coordinator {
namespace {

constexpr net::Milliseconds kLookEvery{500};
constexpr std::size_t kShownCharsMax = 200;
constexpr std::int64_t kDayMs = 86'400'000;
constexpr std::int64_t kExpiresSoonMs = 14 * kDayMs;
constexpr std::string_view kScheme = "bearer ";

// What a stranger sent, for the log. The query stays away: people put secrets there.
std::string Shown(const net::HttpRequest& request) {
  std::string text = (request.method + " " + request.path).substr(0, kShownCharsMax);
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return text;
}

// Of "Bearer TOKEN"; nothing if there is no such header.
std::optional<std::string> TokenOf(const net::HttpRequest& request) {
  const auto header = request.headers.find("authorization");
  if (header == request.headers.end() || header->second.size() < kScheme.size()) {
    return std::nullopt;
  }
  for (std::size_t i = 0; i < kScheme.size(); ++i) {
    const auto c = static_cast<unsigned char>(header->second[i]);
    if (std::tolower(c) != kScheme[i]) return std::nullopt;
  }
  return header->second.substr(kScheme.size());
}

// Who has the token; empty if nobody does.
std::string OwnerName(const net::ApiToken* token) {
  return token == nullptr ? std::string() : token->name.substr(0, token->name.find(':'));
}

}  // namespace

Status ApiSecurity::Check(const std::string& bind, bool insecure) const {
  const auto wrong = [](std::string what) {
    return Error{ErrorId::kApiGuardWanted, std::move(what)};
  };
  if (tls.certificate.empty() != tls.key.empty()) {
    return Error{ErrorId::kFlagsTogether, "--api-cert and --api-key are of use only together"};
  }
  if (net::IsLoopback(bind)) return Ok();
  if (!tokens.empty() && !tls.given()) {
    return wrong("--api-tokens needs --api-cert and --api-key where others listen (--bind " + bind +
                 "): a token that was sent in the clear is no secret any more");
  }
  if (!insecure && (tokens.empty() || !tls.given())) {
    return wrong("--bind " + bind +
                 " lets other hosts reach the API: give --api-cert and --api-key (`ds-cli auth "
                 "certificate` makes them) and --api-tokens (`ds-cli token create`)");
  }
  return Ok();
}

ApiAccess::ApiAccess(net::Loop& loop, net::HttpServer& server, ApiSecurity security)
    : server_(server), security_(std::move(security)), look_(loop) {}

Status ApiAccess::Open() {
  if (security_.tls.given()) PS_TRY(ReadTls());
  if (!security_.tokens.empty()) {
    PS_TRY(ReadTokens());
    server_.OnHeader([this](const net::HttpRequest& request) { return Admit(request); });
  }
  look_.Every(kLookEvery, [this] { Look(false); });
  return Ok();
}

void ApiAccess::Reload() { Look(true); }

void ApiAccess::Look(bool again) {
  const auto complain = [](const Status& read) {
    if (!read.ok()) spdlog::error("{}; what was in force still is", ErrorLine(read.error()));
  };
  // A certificate and its key are never replaced in the same moment: in between they do not fit,
  // which is an error, and the second change brings us here again.
  const bool tls = security_.tls.given() &&
                   (again || net::StateOf(security_.tls.certificate) != certificate_file_ ||
                    net::StateOf(security_.tls.key) != key_file_);
  if (tls) complain(ReadTls());
  if (!security_.tokens.empty() && (again || net::StateOf(security_.tokens) != tokens_file_)) {
    complain(ReadTokens());
  }
}

Status ApiAccess::ReadTls() {
  certificate_file_ = net::StateOf(security_.tls.certificate);
  key_file_ = net::StateOf(security_.tls.key);
  const net::ServerTls tls = PS_TRY(net::OpenServerTls(security_.tls));
  server_.UseTls(tls.context);
  until_ms_ = tls.until_ms;
  const std::int64_t left_ms = until_ms_ - net::WallClockMs();
  if (left_ms > kExpiresSoonMs) {
    spdlog::info("API: the certificate {} is valid until {}", security_.tls.certificate,
                 net::DateText(until_ms_));
  } else {
    spdlog::warn("API: the certificate {} {} {}", security_.tls.certificate,
                 left_ms > 0 ? "expires soon, on" : "has expired, on", net::DateText(until_ms_));
  }
  return Ok();
}

Status ApiAccess::ReadTokens() {
  tokens_file_ = net::StateOf(security_.tokens);
  tokens_ = PS_TRY(net::ApiTokens::ReadFile(security_.tokens));
  spdlog::info("API: {} was read: {} tokens are known", security_.tokens, tokens_.tokens().size());
  return Ok();
}

net::HttpResponse ApiAccess::Refuse(const net::HttpRequest& request, int status,
                                    const std::string& log, const Error& error) {
  ++(status == 403 ? counters_.forbidden : counters_.refused);
  log_.Warn("API: refused " + request.peer + ": " + log + " (" + Shown(request) + ")");
  net::HttpResponse response = net::ErrorResponse(status, error);
  if (status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer realm=\"ds\"");
  return response;
}

std::optional<net::HttpResponse> ApiAccess::Admit(const net::HttpRequest& request) {
  const Endpoint* const endpoint = FindEndpoint(request.method, request.path);
  if (endpoint != nullptr && !endpoint->role) return std::nullopt;
  const auto token = TokenOf(request);
  if (!token) {
    return Refuse(request, 401, "it has no token",
                  {ErrorId::kTokenMissing, "a token is needed: Authorization: Bearer TOKEN"});
  }
  const net::ApiToken* const known = tokens_.Find(*token);
  if (known == nullptr || known->expired(net::WallClockMs())) {
    return Refuse(request, 401,
                  known == nullptr ? "nobody has its token"
                                   : "the token of " + known->name + " has expired on " +
                                         net::DateText(*known->until_ms),
                  {ErrorId::kTokenUnknown, "the token is not known, or not any more"});
  }
  if (endpoint == nullptr) {
    return ApiError(
        {ErrorId::kNotOfTheApi, request.method + " " + request.path + " is not part of the API"});
  }
  const std::string who = known->name + " (" + net::ApiRoleName(known->role) + ")";
  if (known->role < *endpoint->role) {
    const std::string needed = net::ApiRoleName(*endpoint->role);
    return Refuse(
        request, 403, who + " is no " + needed,
        {ErrorId::kTokenForbids,
         "the token of " + who + " does not allow that, but one of a " + needed + " would"});
  }
  if (request.method != "GET" && request.method != "HEAD") {
    spdlog::info("API: {} at {}: {}", who, request.peer, Shown(request));
  }
  return std::nullopt;
}

const net::ApiToken* ApiAccess::Find(const net::HttpRequest& request) const {
  const auto token = TokenOf(request);
  return token ? tokens_.Find(*token) : nullptr;
}

std::string ApiAccess::OwnerOf(const net::HttpRequest& request) const {
  return OwnerName(Find(request));
}

std::optional<net::HttpResponse> ApiAccess::AdmitToJob(const net::HttpRequest& request,
                                                       const std::string& owner) {
  const Endpoint* const endpoint = FindEndpoint(request.method, request.path);
  if (security_.tokens.empty() || endpoint == nullptr || !endpoint->owners) return std::nullopt;
  const net::ApiToken* const known = Find(request);
  if (known != nullptr && known->role == net::ApiRole::kAdmin) return std::nullopt;
  const std::string who = OwnerName(known);
  if (!who.empty() && who == owner) return std::nullopt;
  const std::string whose = owner.empty() ? "an admin" : owner;
  return Refuse(request, 403, who + " asked about a job of " + whose,
                {ErrorId::kTokenForbids, "the job is " + whose +
                                             "'s: " + (owner.empty() ? "" : whose + " or ") +
                                             "an admin may do that, not " + who});
}

}  // namespace ps::coordinator
