// A coordinator that answers as the test says, on a thread of its own.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/error_id.h"
#include "common/net/http_server.h"
#include "common/net/loop.h"

namespace ps::cli {

class FakeCoordinator {
 public:
  // Runs on the fake's thread.
  using Handler = std::function<net::HttpResponse(const net::HttpRequest&)>;

  // With TLS if `tls` names files.
  explicit FakeCoordinator(Handler handler, const net::TlsFiles& tls = {});
  ~FakeCoordinator();

  const std::string& url() const { return url_; }
  // "GET /v1/jobs", in order.
  std::vector<std::string> requests() const;
  std::string last_body() const;
  // The Authorization header of the last request; "" if it had none.
  std::string last_authorization() const;

 private:
  net::Loop loop_;
  std::unique_ptr<net::HttpServer> server_;
  std::string url_;
  mutable std::mutex mutex_;
  std::vector<std::string> requests_;
  std::string last_body_;
  std::string last_authorization_;
  std::thread thread_;
};

net::HttpResponse Answer(int status, const std::string& json);
// As the coordinator writes errors.
net::HttpResponse AnswerError(int status, ErrorId id, const std::string& message);

}  // namespace ps::cli
