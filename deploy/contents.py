"""Where the contents of uploads are."""

from deploy.settings import Settings
from domain.ports import ObjectStore
from storage.objects import FileObjects, S3Objects, S3Settings


def objects(settings: Settings) -> ObjectStore:
    """A bucket, or else a folder that nothing serves."""
    if settings.s3_url:
        return S3Objects(S3Settings(settings.s3_url, settings.aws_region, settings.s3_endpoint))
    return FileObjects(settings.data_dir / "uploads")
