//! etcd's own endpoints manager (`clientv3/naming/endpoints`), which grpc-go resolves:
//! `<service>/<address or id>`.

use serde::Deserialize;
use serde_json::Value;

use super::registration::{Decoded, Place, flat, weight_in};

/// A registration that marks itself as removed.
const DELETE: i64 = 1;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    #[serde(default)]
    op: i64,
    addr: String,
    /// Whatever the program stores; often null.
    #[serde(default)]
    metadata: Value,
}

pub(super) fn read(place: &Place<'_>, value: Value) -> Decoded {
    let update: Update = serde_json::from_value(value)?;
    if update.op == DELETE {
        return Ok(Vec::new());
    }
    let mut instance = place.instance(update.addr.parse()?)?;
    if let Some(weight) = weight_in(&update.metadata) {
        instance = instance.with_weight(weight);
    }
    Ok(vec![instance.with_metadata(flat(&update.metadata))])
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{instance, metadata, read};

    #[test]
    fn metadata_may_be_anything() {
        for (metadata, weight) in [
            ("null", 1),
            (r#""text""#, 1),
            ("[1]", 1),
            (r#"{"weight":"5"}"#, 5),
            (r#"{"weight":20000}"#, 20_000),
            (r#"{"weight":{}}"#, 1),
        ] {
            let value = format!(r#"{{"Op":0,"Addr":"10.0.0.5:80","Metadata":{metadata}}}"#);
            assert_eq!(
                read("s", ValueFormat::Grpc, "s/web/a", &value),
                format!("web: a=10.0.0.5:80*{weight}")
            );
        }
        let value = r#"{"Addr":"10.0.0.5:80","Metadata":{"zone":"a","canary":true,"nested":{"x":1}}}"#;
        let instance = instance(ValueFormat::Grpc, "s/web/a", value);
        assert_eq!(
            (metadata(&instance, "zone"), metadata(&instance, "canary")),
            (Some("a"), Some("true"))
        );
        assert_eq!(metadata(&instance, "nested"), None);
    }

    #[test]
    fn a_put_of_a_deletion_is_a_deletion() {
        let value = r#"{"Op":1,"Addr":"10.0.0.5:80","Metadata":null}"#;
        assert_eq!(read("s", ValueFormat::Grpc, "s/web/a", value), "web:");
        assert_eq!(read("s", ValueFormat::Auto, "s/web/a", value), "web:");
    }
}
