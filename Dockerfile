# The study in an image, installed as the README installs it:
#   docker build -t sinkstudy . && docker run --rm -v "$PWD/results:/study/results" sinkstudy
# For `snakemake --sdm apptainer`, see docs/slurm.md.
FROM python:3.11-slim
WORKDIR /study
COPY . .
RUN pip install --no-cache-dir -q -c requirements.lock -e .
CMD ["snakemake", "--cores", "4"]
