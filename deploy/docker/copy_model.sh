#!/bin/sh
# Copies the small model of its image into the volume at /models, whole or not at all. One that is
# there already stays as it is: engines may be reading it.
set -eu
name=smollm2-135m-instruct
mark=$name/anabranch-model.json
if cmp -s "/opt/models/$mark" "/models/$mark"; then
    echo "/models/$name is there"
    exit 0
fi
rm -rf "/models/.$name.part"
cp -R "/opt/models/$name" "/models/.$name.part"
rm -rf "/models/${name:?}"
mv "/models/.$name.part" "/models/$name"
echo "/models/$name is made"
