# Two instances of `user-service` on this node. Without `address`, Consul gives out the node's.
services {
  id   = "user-1"
  name = "user-service"
  port = 8081
  tags = ["v1", "http"]
  meta = {
    zone = "us-west"
  }
  weights = {
    passing = 2
    warning = 1
  }
  check {
    id       = "user-1-http"
    name     = "GET /healthz"
    http     = "http://127.0.0.1:8081/healthz"
    interval = "5s"
    timeout  = "1s"
  }
}

services {
  id   = "user-2"
  name = "user-service"
  port = 8082
  tags = ["v2", "http"]
  meta = {
    zone = "us-east"
  }
  weights = {
    passing = 1
    warning = 1
  }
  check {
    id       = "user-2-http"
    name     = "GET /healthz"
    http     = "http://127.0.0.1:8082/healthz"
    interval = "5s"
    timeout  = "1s"
  }
}
