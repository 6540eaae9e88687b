#include "cli/api.h"

#include <algorithm>
#include <cctype>

#include "common/error_catalogue.h"

namespace ps::cli {
namespace {

constexpr std::int64_t kOneServerMs = 5'000;
// A submission loads the model and looks through the data first.
constexpr std::int64_t kPostMs = 60'000;
constexpr int kRedirectsMax = 5;
constexpr int kAgainMax = 3;
constexpr std::chrono::milliseconds kLeaderPause{300};

std::string WithoutSlash(std::string url) {
  while (!url.empty() && url.back() == '/') url.pop_back();
  return url;
}

// "http://host:port" of a URL that a standby named; "" if it is only a path.
std::string OriginOf(const std::string& url) {
  const auto scheme = url.find("://");
  if (scheme == std::string::npos) return "";
  const auto slash = url.find('/', scheme + 3);
  return slash == std::string::npos ? url : url.substr(0, slash);
}

bool IsHttps(const std::string& url) { return url.rfind("https://", 0) == 0; }

}  // namespace

std::string UrlEncode(const std::string& text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || c == '-' || c == '.' || c == '_' || c == '~') {
      encoded += c;
    } else {
      encoded += '%';
      encoded += kHex[byte >> 4];
      encoded += kHex[byte & 15];
    }
  }
  return encoded;
}

std::string JobPath(const std::string& job) { return "/v1/jobs/" + UrlEncode(job); }

Result<Json> GetJob(Api& api, const std::string& job) {
  const Json answer = PS_TRY(api.Get(JobPath(job)));
  return MemberOf(answer, "job");
}

Error ErrorOfAnswer(int status, const std::string& body, const std::string& url) {
  const Json json = Json::parse(body, nullptr, false);
  const Json& error = MemberOf(json, "error");
  std::string message = error.is_object() ? TextOf(error, "message") : TextOf(json, "error");
  if (message.empty()) {
    message = url + " answered with HTTP status " + std::to_string(status);
    if (!body.empty() && json.is_discarded()) message += ": " + Printable(body.substr(0, 200));
  }
  ErrorCode code = ErrorCode::kInternal;
  switch (status) {
    case 400:
    case 413:
    case 422: code = ErrorCode::kInvalid; break;
    case 401:
    case 403: code = ErrorCode::kDenied; break;
    case 404: code = ErrorCode::kNotFound; break;
    case 409: code = ErrorCode::kConflict; break;
    case 429:
    case 502:
    case 503:
    case 504: code = ErrorCode::kUnreachable; break;
    default: break;
  }
  Error result{code, std::move(message)};
  // The server knows better than the status what is wrong.
  const std::string id = TextOf(error, "code");
  if (id.rfind("DS-E", 0) == 0) result.id = ParseErrorId(id).value_or(result.id);
  return result;
}

Api::Api(Environment& environment, Context context)
    : environment_(environment), context_(std::move(context)) {
  for (auto& url : context_.coordinators) url = WithoutSlash(url);
}

Result<Json> Api::Get(const std::string& path) {
  return Call("GET", path, "", kOneServerMs, /*repeatable=*/true);
}

Result<Json> Api::Post(const std::string& path, const Json& body) {
  return Send(path, body, /*repeatable=*/false);
}

Result<Json> Api::PostRepeatable(const std::string& path, const Json& body) {
  return Send(path, body, /*repeatable=*/true);
}

Result<Json> Api::Send(const std::string& path, const Json& body, bool repeatable) {
  // Finds the leader with a call that is answered at once, so that the long one meets no dead host.
  PS_TRY(Get("/v1/version"));
  return Call("POST", path, body.dump(-1, ' ', false, Json::error_handler_t::replace), kPostMs,
              repeatable);
}

Result<Json> Api::Call(const std::string& method, const std::string& path, const std::string& body,
                       std::int64_t one_server_ms, bool repeatable) {
  std::int64_t end = environment_.now_ms() + deadline_ms_;
  // One that the leader took, before it was gone, has time for the next leader.
  int again = method == "POST" && repeatable ? kAgainMax : 0;
  bool taken = false;
  while (true) {
    bool wait_for_leader = false;
    bool denied = false;
    std::string asked;
    // Of what each of them met, if it is the same.
    std::optional<ErrorId> common;
    const auto met = [&common](ErrorId id) {
      common = common.value_or(id) == id ? id : ErrorId::kNoCoordinatorReady;
    };
    for (const std::string& coordinator : std::vector<std::string>(context_.coordinators)) {
      std::string origin = coordinator;
      for (int redirects = 0; redirects <= kRedirectsMax; ++redirects) {
        if (environment_.interrupted()) return Error{ErrorCode::kClosed, "interrupted"};
        const std::int64_t left = end - environment_.now_ms();
        if (left <= 0) break;
        const std::int64_t limit = method == "GET" ? std::min(left, one_server_ms) : one_server_ms;
        const auto reply = net::HttpCall(method, origin + path, body,
                                         std::chrono::milliseconds(limit), context_.access);
        if (!reply.ok()) {
          const Error& error = reply.error();
          const bool sent =
              error.code == ErrorCode::kTimeout || error.code == ErrorCode::kMaybeApplied;
          if (sent && !repeatable) {
            return Error{ErrorId::kOutcomeUnknown,
                         error.message + "; the request may have been carried out"};
          }
          if (error.code == ErrorCode::kUsage) return error;
          taken = taken || (sent && method == "POST");
          if (sent && again > 0) {
            --again;
            end = environment_.now_ms() + deadline_ms_;
            wait_for_leader = true;
          }
          denied = denied || error.code == ErrorCode::kDenied;
          met(error.id);
          asked += (asked.empty() ? "" : "; ") + origin + " (" + error.message + ")";
          break;
        }
        if (reply->status == 307 || reply->status == 308) {
          const std::string leader = OriginOf(reply->location);
          if (leader.empty() || leader == origin) {
            met(ErrorId::kNoLeader);
            asked += (asked.empty() ? "" : "; ") + origin + " (sends nowhere)";
            wait_for_leader = true;
            break;
          }
          if (IsHttps(origin) && !IsHttps(leader)) {
            denied = true;
            met(ErrorId::kCoordinatorNotTrusted);
            asked += (asked.empty() ? "" : "; ") + origin + " (sends to " + Printable(leader) +
                     ", which has no TLS)";
            break;
          }
          origin = leader;
          continue;
        }
        if (reply->status >= 200 && reply->status < 300) {
          // The one that answered comes first from now on; the leader may not have been listed.
          auto& urls = context_.coordinators;
          if (const auto found = std::find(urls.begin(), urls.end(), origin); found != urls.end()) {
            std::rotate(urls.begin(), found, found + 1);
          } else {
            urls.insert(urls.begin(), origin);
          }
          Json json = Json::parse(reply->body, nullptr, false);
          if (json.is_discarded() || !json.is_object()) {
            return Error{ErrorId::kNoCoordinatorThere, origin + path +
                                                           " answered with something that is "
                                                           "not a JSON object; is it a "
                                                           "coordinator?"};
          }
          return json;
        }
        Error error = ErrorOfAnswer(reply->status, reply->body, origin + path);
        taken = taken || (reply->status == 504 && method == "POST");
        if (reply->status == 504 && !repeatable) {
          error.code = ErrorCode::kMaybeApplied;
          if (IsGeneric(error.id)) error.id = ErrorId::kOutcomeUnknown;
          return error;
        }
        if (reply->status == 401) {
          error.message += context_.access.token.empty()
                               ? " (none is given: DS_TOKEN_FILE or DS_TOKEN)"
                               : " (DS_TOKEN, or " + context_.token_file + ")";
        }
        if (error.code != ErrorCode::kUnreachable) return error;
        // No leader yet, or it is not ready. It did nothing, so that any request may be repeated.
        wait_for_leader = true;
        met(error.id);
        asked += (asked.empty() ? "" : "; ") + origin + " (" + error.message + ")";
        break;
      }
    }
    if (environment_.interrupted()) return Error{ErrorCode::kClosed, "interrupted"};
    if (!wait_for_leader || environment_.now_ms() + kLeaderPause.count() >= end) {
      if (asked.empty()) asked = "no time was left to ask";
      if (taken) {
        return Error{ErrorId::kOutcomeUnknown,
                     "it was sent, and no coordinator is ready to say what became of it: " + asked};
      }
      Error error{
          denied ? ErrorId::kCoordinatorNotTrusted : ErrorId::kNoCoordinatorReady,
          "no coordinator is ready to answer (known from " + context_.source + "): " + asked};
      if (common && !IsGeneric(*common)) error.id = *common;
      return error;
    }
    environment_.sleep(kLeaderPause);
  }
}

}  // namespace ps::cli
