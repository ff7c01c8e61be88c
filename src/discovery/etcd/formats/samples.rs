//! Keys and values as each registrar writes them, by the source code, tests or documentation of
//! the registrar. Addresses are changed where the source has none.

use super::{Prefix, ValueFormat};
use crate::balancer::ServiceInstance;

/// One key with its value.
pub(super) struct Sample {
    /// Project and file that the shape is taken from.
    pub(super) source: &'static str,
    pub(super) format: ValueFormat,
    pub(super) prefix: &'static str,
    /// The service of the prefix, where the key has more folders than service and instance.
    pub(super) service: Option<&'static str>,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    /// `service: id=address*weight ...`
    pub(super) registers: &'static str,
}

impl Sample {
    pub(super) fn prefix(&self, format: ValueFormat) -> Prefix {
        let prefix = Prefix::new(self.prefix).unwrap().with_format(format);
        match self.service {
            Some(service) => prefix.with_service(service.parse().unwrap()),
            None => prefix,
        }
    }

    /// What the key registers, below a prefix of this format.
    pub(super) fn read(&self, format: ValueFormat) -> Vec<ServiceInstance> {
        let read = self.prefix(format).read(self.key.as_bytes(), self.value.as_bytes());
        let registration = match read {
            Ok(registration) => registration,
            Err(error) if !error.is_counted() => return Vec::new(),
            Err(error) => panic!("{} ({}): {error}", self.source, self.key),
        };
        let ignored = registration.ignored;
        assert!(ignored.is_empty(), "{} ({}): {ignored:?}", self.source, self.key);
        registration.instances
    }
}

const fn at(
    source: &'static str,
    format: ValueFormat,
    (prefix, service): (&'static str, Option<&'static str>),
    key: &'static str,
    value: &'static str,
    registers: &'static str,
) -> Sample {
    Sample {
        source,
        format,
        prefix,
        service,
        key,
        value,
        registers,
    }
}

pub(super) const SAMPLES: [Sample; 35] = [
    at(
        "pickd, docs/etcd.md",
        ValueFormat::Json,
        ("/services/", None),
        "/services/api/1",
        r#"{"host":"10.0.0.5","port":9100,"weight":3}"#,
        "api: 1=10.0.0.5:9100*3",
    ),
    at(
        "gliderlabs/registrator, etcd backend: host:port",
        ValueFormat::Plain,
        ("/services/", None),
        "/services/api/node-1:api:80",
        "10.0.0.5:9100",
        "api: node-1:api:80=10.0.0.5:9100*1",
    ),
    at(
        "go-kit/kit, sd/etcdv3/example_test.go",
        ValueFormat::Plain,
        ("/services/", None),
        "/services/foosvc/1.2.3.4:8080",
        "http://1.2.3.4:8080",
        "foosvc: 1.2.3.4:8080=1.2.3.4:8080*1",
    ),
    at(
        "traefik/traefik, docs/content/routing/providers/kv.md",
        ValueFormat::Plain,
        (
            "traefik/http/services/myservice/loadbalancer/servers/",
            Some("myservice"),
        ),
        "traefik/http/services/myservice/loadbalancer/servers/0/url",
        "http://10.0.0.5:8080/",
        "myservice: 0/url=10.0.0.5:8080*1",
    ),
    at(
        "etcd-io/etcd, client/v3/naming/endpoints",
        ValueFormat::Grpc,
        ("foo/bar/svc", Some("svc")),
        "foo/bar/svc/10.0.0.5:8080",
        r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":{"weight":10}}"#,
        "svc: 10.0.0.5:8080=10.0.0.5:8080*10",
    ),
    at(
        "etcd-io/etcd, client/v3/naming/endpoints: without metadata",
        ValueFormat::Grpc,
        ("foo/bar/svc", Some("svc")),
        "foo/bar/svc/10.0.0.5:8080",
        r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":null}"#,
        "svc: 10.0.0.5:8080=10.0.0.5:8080*1",
    ),
    at(
        "go-kratos/kratos, contrib/registry/etcd/registry.go",
        ValueFormat::Kratos,
        ("/microservices", None),
        "/microservices/helloworld/3f1c-a",
        r#"{"id":"3f1c-a","name":"helloworld","version":"v1.0.0","metadata":{"weight":"10"},"endpoints":["http://10.0.0.5:8000?isSecure=false","grpc://10.0.0.5:9000?isSecure=false"]}"#,
        "helloworld: 3f1c-a=10.0.0.5:8000*10",
    ),
    at(
        "go-kratos/kratos, selector/node/direct/direct.go: defaultWeight = 100",
        ValueFormat::Kratos,
        ("/microservices", None),
        "/microservices/helloworld/3f1c-a",
        r#"{"id":"3f1c-a","name":"helloworld","version":"","metadata":{},"endpoints":["grpc://10.0.0.5:9000"]}"#,
        "helloworld: 3f1c-a=10.0.0.5:9000*100",
    ),
    at(
        "go-kratos/kratos, registry/registry.go: an application without endpoints",
        ValueFormat::Kratos,
        ("/microservices", None),
        "/microservices/helloworld/3f1c-a",
        r#"{"id":"3f1c-a","name":"helloworld","version":"","metadata":{},"endpoints":[]}"#,
        "helloworld:",
    ),
    at(
        "zeromicro/go-zero, core/discov/publisher.go",
        ValueFormat::GoZero,
        ("user.rpc", Some("user.rpc")),
        "user.rpc/7587870460981677828",
        "10.0.0.5:8080",
        "user.rpc: 7587870460981677828=10.0.0.5:8080*1",
    ),
    at(
        "go-micro, plugin registry/etcd",
        ValueFormat::GoMicro,
        ("/micro/registry/", None),
        "/micro/registry/greeter/greeter-7f",
        r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[],"nodes":[{"id":"greeter-7f","address":"10.0.0.5:45123","metadata":{"protocol":"grpc"}}]}"#,
        "greeter: greeter-7f=10.0.0.5:45123*1",
    ),
    at(
        "go-micro v1, registry/etcd",
        ValueFormat::GoMicro,
        ("/micro-registry/", None),
        "/micro-registry/greeter/greeter-7f",
        r#"{"name":"greeter","version":"1","metadata":{},"endpoints":[],"nodes":[{"id":"greeter-7f","address":"10.0.0.5","port":45123,"metadata":{}}]}"#,
        "greeter: greeter-7f=10.0.0.5:45123*1",
    ),
    at(
        "NullExceptionNull/go_rpc, common/service_define.go",
        ValueFormat::GoMicro,
        ("/services/", None),
        "/services/user/7587870460981677828",
        r#"{"name":"user","nodes":[{"name":"user","id":7587870460981677828,"ip":"10.0.0.5","port":8080,"weight":3,"last_heart_beat":0}]}"#,
        "user: 7587870460981677828=10.0.0.5:8080*3",
    ),
    at(
        "kitex-contrib/registry-etcd, etcd_resolver.go",
        ValueFormat::Kitex,
        ("kitex/registry-etcd", None),
        "kitex/registry-etcd/echo/10.0.0.5:8888",
        r#"{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":null}"#,
        "echo: 10.0.0.5:8888=10.0.0.5:8888*10",
    ),
    at(
        "kitex-contrib/registry-etcd, etcd_resolver.go: defaultWeight = 10",
        ValueFormat::Kitex,
        ("kitex/registry-etcd", None),
        "kitex/registry-etcd/echo/10.0.0.5:8888",
        r#"{"network":"tcp","address":"10.0.0.5:8888","weight":0,"tags":{"cluster":"default"}}"#,
        "echo: 10.0.0.5:8888=10.0.0.5:8888*10",
    ),
    at(
        "smallnest/rpcx, serverplugin/etcd.go",
        ValueFormat::Rpcx,
        ("/rpcx", None),
        "/rpcx/Arith/tcp@10.0.0.5:8972",
        "weight=7&calls=12.00&connections=3.00",
        "Arith: tcp@10.0.0.5:8972=10.0.0.5:8972*7",
    ),
    at(
        "smallnest/rpcx, serverplugin/etcd.go: the key of a service's folder",
        ValueFormat::Rpcx,
        ("/rpcx", None),
        "/rpcx/Arith",
        "Arith",
        "",
    ),
    at(
        "coredns/coredns, plugin/etcd/msg/service.go",
        ValueFormat::SkyDns,
        ("/skydns/local/", None),
        "/skydns/local/skydns/x5",
        r#"{"host":"10.0.0.5","port":8080,"priority":10,"weight":20,"ttl":60}"#,
        "skydns: x5=10.0.0.5:8080*20",
    ),
    at(
        "coredns/coredns, plugin/etcd/README.md: a record for DNS alone",
        ValueFormat::SkyDns,
        ("/skydns/local/", None),
        "/skydns/local/skydns/x1",
        r#"{"host":"10.0.0.5","ttl":60}"#,
        "skydns:",
    ),
    at(
        "coredns/coredns, plugin/etcd/README.md: without weight",
        ValueFormat::SkyDns,
        ("/skydns/local/", None),
        "/skydns/local/skydns/x1",
        r#"{"host":"10.0.0.5","port":8080}"#,
        "skydns: x1=10.0.0.5:8080*100",
    ),
    at(
        "apache/dubbo-go, registry/etcdv3/service_discovery.go and registry/service_instance.go",
        ValueFormat::Dubbo,
        ("/services/", None),
        "/services/user-app/10.0.0.5:20000",
        "{\"ID\":\"10.0.0.5:20000\",\"ServiceName\":\"user-app\",\"Host\":\"10.0.0.5\",\"Port\":20000,\"Weight\":0,\"Enable\":true,\"Healthy\":true,\"Metadata\":{\"dubbo.endpoints\":\"[{\\\"port\\\":20000,\\\"protocol\\\":\\\"dubbo\\\"}]\",\"dubbo.metadata.revision\":\"7f2a\",\"dubbo.metadata.storage-type\":\"local\",\"timestamp\":\"1700000000\"},\"ServiceMetadata\":null,\"Address\":\"10.0.0.5:20000\",\"GroupName\":\"\",\"Tag\":\"\"}\n",
        "user-app: 10.0.0.5:20000=10.0.0.5:20000*100",
    ),
    at(
        "apache/dubbo-go, registry/service_instance.go: a weight in the metadata",
        ValueFormat::Dubbo,
        ("/services/", None),
        "/services/user-app/10.0.0.5:20000",
        r#"{"ID":"10.0.0.5:20000","ServiceName":"user-app","Host":"10.0.0.5","Port":20000,"Enable":true,"Healthy":true,"Metadata":{"weight":"55"},"Address":"10.0.0.5:20000"}"#,
        "user-app: 10.0.0.5:20000=10.0.0.5:20000*55",
    ),
    at(
        "apache/dubbo-go, registry/etcdv3/listener_test.go",
        ValueFormat::Dubbo,
        ("/dubbo/com.ikurento.user.UserProvider/providers", Some("user")),
        "/dubbo/com.ikurento.user.UserProvider/providers/jsonrpc%3A%2F%2F127.0.0.1%3A20001%2Fcom.ikurento.user.UserProvider%3Fanyhost%3Dtrue%26app.version%3D0.0.1%26application%3DBDTService%26category%3Dproviders%26cluster%3Dfailover%26dubbo%3Ddubbo-provider-golang-2.6.0%26environment%3Ddev%26group%3D%26interface%3Dcom.ikurento.user.UserProvider%26ip%3D10.32.20.124%26loadbalance%3Drandom%26methods.GetUser.loadbalance%3Drandom%26methods.GetUser.retries%3D1%26methods.GetUser.weight%3D0%26module%3Ddubbogo%2Buser-info%2Bserver%26name%3DBDTService%26organization%3Dikurento.com%26owner%3DZX%26pid%3D74500%26retries%3D0%26service.filter%3Decho%26side%3Dprovider%26timestamp%3D1560155407%26version%3D%26warmup%3D100",
        "",
        "user: jsonrpc://127.0.0.1:20001/com.ikurento.user.UserProvider=127.0.0.1:20001*100",
    ),
    at(
        "apache/apisix, the blog post of 2021 about etcd watch: etcdctl get /apisix/upstreams/1",
        ValueFormat::Apisix,
        ("/apisix/upstreams/", None),
        "/apisix/upstreams/1",
        r#"{"hash_on":"vars","nodes":{"httpbin.org:80":1},"create_time":1627982128,"update_time":1627982128,"scheme":"http","type":"roundrobin","pass_host":"pass","id":"1"}"#,
        "1: 1/httpbin.org:80=httpbin.org:80*1",
    ),
    at(
        "apache/apisix, apisix/schema_def.lua: nodes as a list",
        ValueFormat::Apisix,
        ("/apisix/upstreams/", None),
        "/apisix/upstreams/users",
        r#"{"id":"users","type":"chash","nodes":[{"host":"10.0.0.5","port":80,"weight":2,"priority":0},{"host":"10.0.0.6","port":80,"weight":0}]}"#,
        "users: users/10.0.0.5:80=10.0.0.5:80*2 users/10.0.0.6:80=10.0.0.6:80*0",
    ),
    at(
        "apache/apisix, apisix/schema_def.lua: nodes from a registry",
        ValueFormat::Apisix,
        ("/apisix/upstreams/", None),
        "/apisix/upstreams/users",
        r#"{"id":"users","type":"roundrobin","service_name":"USERS","discovery_type":"eureka"}"#,
        "users:",
    ),
    at(
        "gogf/gf, contrib/registry/etcd/etcd_z_test.go and net/gsvc/gsvc_service.go",
        ValueFormat::GoFrame,
        ("/service/default/default/hello/latest/", Some("hello")),
        "/service/default/default/hello/latest/127.0.0.1:8888",
        r#"{"protocol":"https"}"#,
        "hello: 127.0.0.1:8888=127.0.0.1:8888*1",
    ),
    at(
        "gogf/gf, net/gsvc/gsvc_endpoints.go: several addresses, no metadata",
        ValueFormat::GoFrame,
        ("/service/default/default/hello/latest/", Some("hello")),
        "/service/default/default/hello/latest/192.168.1.100:80,192.168.1.101:80",
        "null",
        "hello: 192.168.1.100:80,192.168.1.101:80/192.168.1.100:80=192.168.1.100:80*1 192.168.1.100:80,192.168.1.101:80/192.168.1.101:80=192.168.1.101:80*1",
    ),
    at(
        "gotomicro/ego, server/server.go and core/eregistry/registry_test.go",
        ValueFormat::Jupiter,
        ("/ego/myserver/providers/", Some("myserver")),
        "/ego/myserver/providers/http://10.0.0.5:9001",
        r#"{"name":"myserver","scheme":"http","address":"10.0.0.5:9001","weight":100,"enable":true,"healthy":true,"metadata":{"appHost":"","appMode":"","appVersion":"","buildTime":"","egoVersion":"v0.7.0","key":"val","startTime":"2021-07-01 10:00:00"},"region":"","zone":"","kind":1,"deployment":"","group":"","services":null}"#,
        "myserver: http://10.0.0.5:9001=10.0.0.5:9001*100",
    ),
    at(
        "douyu/jupiter, pkg/server/server.go and pkg/registry/etcdv3/registry_test.go",
        ValueFormat::Jupiter,
        ("/jupiter/", None),
        "/jupiter/grpc:service_1:v1:dev/10.10.10.1:9091",
        r#"{"name":"service_1","appId":"","scheme":"grpc","address":"10.10.10.1:9091","weight":0,"enable":true,"healthy":true,"metadata":{},"region":"default","zone":"default","kind":1,"version":"","mode":"","deployment":"default","group":"","services":null}"#,
        "grpc:service_1:v1:dev: 10.10.10.1:9091=10.10.10.1:9091*100",
    ),
    at(
        "boilingfrog/etcd-learning, discovery/instance.go",
        ValueFormat::Json,
        ("/hello/", Some("hello")),
        "/hello/v1/10.0.0.5:8080",
        r#"{"name":"hello","addr":"10.0.0.5:8080","version":"v1","weight":3}"#,
        "hello: v1/10.0.0.5:8080=10.0.0.5:8080*3",
    ),
    at(
        "lukebond/blog-etcd-service-discovery-3, register2/index.js",
        ValueFormat::Json,
        ("/services/", None),
        "/services/myservice/1",
        r#"{"hostname":"127.0.0.1","port":"3000","pid":4711,"name":"myservice"}"#,
        "myservice: 1=127.0.0.1:3000*1",
    ),
    at(
        "SidBala/ServiceRegistry, README.md",
        ValueFormat::Json,
        ("/services/", None),
        "/services/MyServiceName/1",
        r#"{"name":"MyServiceName","ip":"10.244.1.105","port":"8080","tags":["Testing","V1.1"]}"#,
        "MyServiceName: 1=10.244.1.105:8080*1",
    ),
    at(
        "nswbmw/etcd-proxy, README.md",
        ValueFormat::Json,
        ("/services/", None),
        "/services/users/1",
        r#"{"hostname":"nswbmw.local","address":"10.10.10.63:62822","env":"test"}"#,
        "users: 1=10.10.10.63:62822*1",
    ),
    at(
        "a struct of Go without JSON names, as encoding/json writes it",
        ValueFormat::Json,
        ("/services/", None),
        "/services/users/1",
        r#"{"Name":"users","Host":"10.0.0.5","Port":8080,"Weight":4,"Tags":["v2"]}"#,
        "users: 1=10.0.0.5:8080*4",
    ),
];
