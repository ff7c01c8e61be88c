//! File registries that several tests serve.

/// Instances of every status, with tags, metadata, weight 0, IPv6 and ids that need escaping, and a
/// service without instances.
pub(crate) const VARIED: &str = r#"
[[service]]
name = "user-service"
[[service.instance]]
id = "user-1"
host = "10.0.1.10"
port = 8080
weight = 1
tags = ["v1", "eu"]
metadata = { zone = "us-\"west\"" }
status = "passing"
[[service.instance]]
id = "user,2"
host = "10.0.1.11"
port = 8080
weight = 2
tags = ["v1"]
[[service.instance]]
id = "user 3"
host = "10.0.1.12"
port = 8081
tags = ["v2", "eu", "a,b"]
status = "warning"

[[service]]
name = "critical"
[[service.instance]]
host = "10.0.2.1"
port = 80
status = "critical"
[[service.instance]]
host = "10.0.2.2"
port = 80
status = "maintenance"

[[service]]
name = "drained"
[[service.instance]]
host = "10.0.3.1"
port = 80
weight = 0

[[service]]
name = "six"
[[service.instance]]
host = "2001:db8::1"
port = 443

[[service]]
name = "hashed"
"#;

/// Two services: one with ids that need escaping and IPv6, one with a critical instance only.
pub(crate) const SMALL: &str = r#"
[[service]]
name = "user-service"
[[service.instance]]
id = "user-1"
host = "10.0.1.10"
port = 8080
tags = ["v1"]
[[service.instance]]
id = "user,2"
host = "10.0.1.11"
port = 8080
weight = 2
tags = ["v1", "eu"]
[[service.instance]]
id = "user 3"
host = "2001:db8::1"
port = 8081

[[service]]
name = "critical"
[[service.instance]]
host = "10.0.2.1"
port = 80
status = "critical"
"#;
