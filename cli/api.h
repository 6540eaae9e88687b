// Calls of the coordinator's REST interface, with every detour that takes.
//
// A call goes to the coordinator that answered last, then to the others; a
// standby's redirect to the leader is followed; while there is no leader (503)
// the call is tried again. All that ends after 15 s; only a leader that was found
// and has taken the request gets a minute to carry it out. An error of the server has
// the code of its HTTP status: 400 and 422 kInvalid, 401 and 403 kDenied, 404
// kNotFound, 409 kConflict, 429 and 503 kUnreachable. A redirect from https to http
// is not followed: where the leader is stands in ZooKeeper, and others may write there.
// Blocks; one thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/context.h"
#include "cli/environment.h"
#include "cli/output.h"
#include "common/net/http_client.h"
#include "common/result.h"

namespace ps::cli {

class Api {
 public:
  static constexpr std::int64_t kDeadlineMs = 15'000;

  Api(Environment& environment, Context context);

  // kUnreachable names every place that was asked; kDenied as well, if one of them could not be
  // trusted. kClosed: the user interrupted.
  Result<Json> Get(const std::string& path);
  // kMaybeApplied: sent, but no answer came. It is not sent twice then.
  Result<Json> Post(const std::string& path, const Json& body);
  // The same of a request that the coordinator knows again when it comes twice: it is sent again.
  Result<Json> PostRepeatable(const std::string& path, const Json& body);

  const Context& context() const { return context_; }

  // How long one call may take in all.
  void set_deadline_ms(std::int64_t deadline_ms) { deadline_ms_ = deadline_ms; }

 private:
  Result<Json> Send(const std::string& path, const Json& body, bool repeatable);
  Result<Json> Call(const std::string& method, const std::string& path, const std::string& body,
                    std::int64_t one_server_ms, bool repeatable);

  Environment& environment_;
  Context context_;
  std::int64_t deadline_ms_ = kDeadlineMs;
};

// A segment of a path or a value of a query: everything but letters, digits and -._~ as %XX.
std::string UrlEncode(const std::string& text);

// "/v1/jobs/JOB", for a number or a name.
std::string JobPath(const std::string& job);
Result<Json> GetJob(Api& api, const std::string& job);

// The error that an answer with this status means.
Error ErrorOfAnswer(int status, const std::string& body, const std::string& url);

}  // namespace ps::cli
