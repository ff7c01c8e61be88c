# The rights that pickd needs where Consul denies by default: to read every service, and every node.
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
