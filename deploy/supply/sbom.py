"""The SBOM and the licence list of an image. Both are functions of the image alone: the same image, the same bytes."""

from collections import Counter
from datetime import datetime
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.exception.factory import CycloneDxFactoryException
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion

from deploy.supply.archive import Image
from deploy.supply.packages import UNNAMED, Package
from docs.reference import table

#: CycloneDX of April 2024, which scanners of today read.
SCHEMA, WEBSITE = SchemaVersion.V1_6, ExternalReferenceType.WEBSITE
TITLES = {"python": "Python packages", "bundled": "Libraries within Python packages", "debian": "Debian packages"}


def sbom(image: Image, packages: list[Package]) -> str:
    """The SBOM as JSON."""
    subject = Component(
        name=image.name,
        bom_ref=image.name,
        type=ComponentType.CONTAINER,
        version=f"sha256:{image.digest}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=image.digest)],
        properties=[Property(name=f"celery-kit:layer:{number}", value=one) for number, one in enumerate(image.layers)],
    )
    made = datetime.fromisoformat((image.config.get("created") or "1970-01-01T00:00:00")[:19] + "+00:00")
    bom = Bom(
        components=map(component, packages),
        metadata=BomMetaData(component=subject, timestamp=made),
        serial_number=uuid5(NAMESPACE_OID, image.digest),
    )
    bom.register_dependency(subject, bom.components)
    return str(make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=1))


def component(one: Package) -> Component:
    """A package as CycloneDX has it."""
    about = {"kind": one.kind, "within": one.within}
    return Component(
        name=one.name,
        version=one.version,
        bom_ref=f"{one.purl}{one.within and f'#in-{one.within}'}",
        purl=one.purl,
        licenses=_licences(one),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one.sha256)] if one.sha256 else [],
        external_references=[ExternalReference(type=WEBSITE, url=XsUri(one.homepage))] if one.homepage else [],
        properties=[Property(name=f"celery-kit:{name}", value=value) for name, value in about.items() if value],
    )


def _licences(one: Package) -> list[DisjunctiveLicense | LicenseExpression]:
    """CycloneDX takes one expression, or any number of licences: SPDX's, or others by name."""
    make, found = LicenseFactory(), list[DisjunctiveLicense | LicenseExpression]()
    for name in one.licences:
        if name == UNNAMED:
            continue
        try:
            found.append(make.make_with_expression(name) if len(one.licences) == 1 and " " in name else make.make_with_id(name))
        except (CycloneDxFactoryException, ValueError):
            found.append(make.make_with_name(name))
    return found


def licences(image: Image, packages: list[Package]) -> str:
    """The licence list, a page for people."""
    counts = Counter(name for one in packages for name in one.licences)
    most_first = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = [
        f"""# Licences in {image.name}

Image sha256:{image.digest}, with {len(packages)} packages.

The licences are those that each package names: Python's in its metadata, Debian's in its copyright file, in the words of SPDX
where that has some. The texts are in the image, in /usr/share/doc/*/copyright and, below /opt, in *.dist-info.""",
        table(("licence", "packages"), *((name, str(count)) for name, count in most_first)),
    ]
    for kind, title in TITLES.items():
        heads = ("package", "version", "licences", "within" if kind == "bundled" else "page")
        of_kind = [one for one in packages if one.kind == kind]
        rows = ((one.name, one.version, ", ".join(one.licences), one.within or one.homepage) for one in of_kind)
        if of_kind:
            parts.append(f"## {title}\n\n{table(heads, *rows)}")
    return "\n\n".join(parts) + "\n"
